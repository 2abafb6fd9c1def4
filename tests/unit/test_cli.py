"""The command line: help, lists and configuration errors, all without torch."""

import subprocess
import sys

import pytest

from rlhf_cli.cli import _COMMANDS, AFTER_TRAINING, USAGE, main
from rlhf_cli.config.schema import COMMANDS
from tests.conftest import child_environment


def test_help_lists_the_commands(capsys):
    assert main([]) == main(["--help"]) == 0
    assert "train-ppo" in capsys.readouterr().out


@pytest.mark.parametrize("command", [*COMMANDS, *_COMMANDS, *AFTER_TRAINING])
def test_every_command_has_help_and_is_in_the_overview(command, capsys):
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: rlhf {command}")
    assert f"\n  {command} " in USAGE


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rlhf 0.")


def test_command_help_lists_options_with_default_and_doc(capsys):
    assert main(["train-ppo", "--help"]) == 0
    out = capsys.readouterr().out
    assert "ppo.cliprange: float = 0.2\n      Clip the probability ratio" in out
    assert "optim.schedule: constant|linear|cosine = cosine" in out
    assert "data.train: path or list of sources = required" in out


def test_list_and_show_config(capsys):
    assert main(["list"]) == 0
    assert "rlhf train-rm  conf=demo" in capsys.readouterr().out
    assert main(["show-config", "train-ppo", "conf=tiny", "ppo.kl_coef=0.7"]) == 0
    assert "kl_coef: 0.7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["train-pp"], "unknown command 'train-pp'; did you mean train-ppo?"),
        (["train-ppo", "conf=tiny", "ppo.cliprang=1"], "did you mean ppo.cliprange?"),
        (["train-ppo", "conf=tiny", "launch.num_gpus=3"], "got 8 = 2.67 x 3 ranks"),
        (["show-config"], "rlhf show-config must be followed by train-rm or train-ppo, got nothing"),
        (["check"], "rlhf check must be followed by train-rm or train-ppo, got nothing"),
        (["check", "train-ppo", "conf=tiny", "ppo.cliprang=1"], "did you mean ppo.cliprange?"),
        (
            ["check", "train-rm", "conf=tiny", "check.num_prompts=0"],
            "check.num_prompts must be 2 or more for rlhf check",
        ),
        (["train-ppo", "conf=tiny", "pretrain.path=no.txt"], "pretrain.path=no.txt: no such file, wanted a text file"),
        (["list", "x"], "list takes no arguments, got x"),
        (["train-ppo", "--local_rank=0", "conf=tiny", "data.train=./no.jsonl"], "data.train=./no.jsonl: no such file"),
    ],
)
def test_wrong_arguments_give_one_line_and_exit_code_2(args, line, capsys):
    assert main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith("rlhf: error: ")
    assert line in err
    assert err.count("\n") == 1


def test_an_existing_run_folder_is_refused_and_kept(tmp_path, capsys):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "precious").write_text("x")
    assert main(["train-ppo", "conf=tiny", f"run.output_dir={tmp_path}"]) == 2
    assert "exists and is never overwritten" in capsys.readouterr().err
    assert (tmp_path / "tiny" / "precious").read_text() == "x"
    assert main(["train-ppo", "conf=tiny", f"run.output_dir={tmp_path}", "run.name=other", "run.resume=true"]) == 2
    assert "Remove run.resume to start it" in capsys.readouterr().err


def run_in_shell(line, **environment):
    words = ["sh", "-c", f"exec {sys.executable} -m rlhf_cli {line}"]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=child_environment(**environment))


def test_output_that_cannot_be_written_gives_one_line():
    done = run_in_shell("list >/dev/full")
    assert (done.returncode, done.stderr) == (
        9,
        "rlhf: error: cannot write the output: No space left on device\n",
    )


def test_characters_that_the_terminal_lacks_are_replaced():
    done = run_in_shell("show-config train-ppo conf=tiny 'data.system_prompt=\"hällo\"'", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "system_prompt: h?llo" in done.stdout


HEAVY = {"torch", "transformers", "deepspeed", "datasets"}


@pytest.mark.parametrize(
    "args",
    [
        *(["--help"], ["list"], ["train-ppo", "--help"], ["check", "train-rm", "--help"], ["show-config", "train-rm"]),
        *(["show-config", "--help"], ["check", "--help"], ["list", "--help"]),
        *(["train-ppo", "conf=tiny", "ppo.x=1"], ["check", "train-ppo", "conf=tiny", "ppo.x=1"]),
    ],
)
def test_help_and_lists_do_not_import_torch(args):
    code = f"import sys; from rlhf_cli.cli import main; main({args!r})\nprint()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())
