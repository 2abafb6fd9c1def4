import json
import subprocess
import sys

import pytest
import torch

from rlhf_cli.cli import main
from rlhf_cli.use.trained_policy import TrainedPolicy
from tests.unit.use.conftest import SYSTEM


def records(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def prompt_file(tmp_path):
    file = tmp_path / "prompts.jsonl"
    chat = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go."},
    ]
    rows = [{"prompt": "Hello?", "kind": "short"}, {"prompt": "Is it far from here to the station?"}, {"prompt": chat}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_responses_do_not_depend_on_the_batch_size(ppo_run, prompt_file, tmp_path, capsys):
    for size in ("1", "4"):
        words = ["generate", str(ppo_run), "--file", str(prompt_file), "--num", "2", "--batch-size", size]
        assert main([*words, "--out", str(tmp_path / f"{size}.jsonl")]) == 0
    one, four = records(tmp_path / "1.jsonl"), records(tmp_path / "4.jsonl")
    assert one == four
    assert [(row["sample"], row["prompt"][-1]["content"]) for row in one][:3] == [
        (0, "Hello?"),
        (1, "Hello?"),
        (0, "Is it far from here to the station?"),
    ]
    assert one[4]["prompt"][:2] == [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Hi."}]
    assert one[4]["prompt"][2] == {"role": "assistant", "content": "Yes?"}
    assert one[0]["kind"] == "short"
    assert one[0]["response"] != one[1]["response"]
    assert all(row["num_tokens"] == 12 or row["ended"] for row in one)
    assert f"6 responses: {tmp_path / '1.jsonl'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "prompt"),
    [
        ([], [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Hello?"}]),
        (["--system", "Be rude."], [{"role": "system", "content": "Be rude."}, {"role": "user", "content": "Hello?"}]),
        (["--system", ""], "Hello?"),
    ],
)
def test_score_reads_the_conversation_that_generate_writes(words, prompt, ppo_run, rm_run, tmp_path):
    """`score` of what `generate` writes is what `evaluate` says of the same answers."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Hello?"}\n')
    answers, scores, both = (tmp_path / f"{name}.jsonl" for name in ("answers", "scores", "both"))
    assert main(["generate", str(ppo_run), "--file", str(rows), *words, "--out", str(answers)]) == 0
    assert main(["score", str(rm_run), "--file", str(answers), "--out", str(scores)]) == 0
    reward = ["--reward", str(rm_run)]
    assert main(["evaluate", str(ppo_run), "--prompts", str(rows), *reward, *words, "--out", str(both)]) == 0
    assert records(answers)[0]["prompt"] == prompt
    evaluated = records(both)[0]
    assert evaluated["prompt"] == prompt
    assert records(scores)[0]["score"] == pytest.approx(evaluated["policy"]["score"], abs=1e-5)


def test_seed_and_temperature_change_responses_unless_greedy(ppo_run, tmp_path):
    def answer(*words):
        out = tmp_path / "out.jsonl"
        out.unlink(missing_ok=True)
        assert main(["generate", str(ppo_run), "--prompt", "Hello?", "--out", str(out), *words]) == 0
        return records(out)[0]["response"]

    first = answer()
    assert answer("--seed", "0") == first
    assert answer("--seed", "1") != first
    assert answer("--temperature", "5") != first
    assert answer("--system", "Another one.") != first
    assert answer("--greedy", "--seed", "1") == answer("--greedy")
    assert len(answer("--max-new-tokens", "3")) <= 3


def test_responses_are_shown_without_control_characters(ppo_run, capsys):
    assert main(["generate", str(ppo_run), "--prompt", "One \x1b[31m", "Two", "--num", "2"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("response 2 of 2]") == 2
    assert out.index("> One") < out.index("> Two")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none/at/all", "--prompt", "x"], "policy=none/at/all: no such file or folder"),
        (["{run}"], "no prompt; give --prompt TEXT or --file FILE"),
        (["{run}", "--prompt", " "], "--prompt is empty"),
        (["{run}", "--prompt", "x", "--temperature", "0"], "--temperature: wanted a number in (0, 10], got '0'"),
        (["{run}", "--prompt", "x", "--num", "0"], "--num: wanted an integer of 1 or more, got '0'"),
        (["{run}", "--prompt", "x", "--num", "2", "--greedy"], "repeats the same response"),
        (["{run}", "--prompt", "x", "--out", "a.txt"], "--out must be a file that ends in .jsonl"),
        (["{run}", "--prompt", "x", "--out", "nowhere/a.jsonl"], "its folder does not exist"),
        (["{run}", "--file", "none.jsonl"], "--file=none.jsonl: no such file or folder"),
        (["{run}", "--file", "{rows}", "--out", "{rows}"], "prompts.jsonl exists and is never overwritten"),
        (["{run}", "--prompt", "x", "--out", "/proc/a.jsonl"], "--out /proc/a.jsonl: cannot be written: "),
        (["{run}", "--file", "{rows}", "--prompt-column", "question"], "set --prompt-column"),
        (["{run}", "--promt", "x"], "unrecognized arguments: --promt x; see rlhf generate --help"),
        (["{run}", "--prompt", "x", "--device", "abacus"], "device abacus"),
        (["{run}", "--prompt", "x", "x" * 480], "prompt 2: "),
        ([], "the following arguments are required: MODEL"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(words, message, ppo_run, prompt_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word.format(run=ppo_run, rows=prompt_file) for word in words]
    assert main(["generate", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["generate", "score", "evaluate", "chat", "best-of-n", "serve-reward"])
def test_help_needs_no_torch(command):
    code = (
        f"import sys\nfrom rlhf_cli.cli import main\nassert main(['{command}', '--help']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: rlhf {command} ")


def test_out_of_gpu_memory_names_the_options_to_lower(ppo_run, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")

    monkeypatch.setattr(TrainedPolicy, "generate", full)
    assert main(["generate", str(ppo_run), "--prompt", "x"]) == 7
    err = capsys.readouterr().err
    assert "Tried to allocate 2 GiB.); lower --batch-size" in err
    assert err.count("\n") == 1


def test_a_bad_row_is_named(ppo_run, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    assert main(["generate", str(ppo_run), "--file", str(tmp_path / "rows.jsonl")]) == 2
    err = capsys.readouterr().err
    assert f"--file={tmp_path / 'rows.jsonl'}: 1 bad row of 2" in err
    assert "rows.jsonl:2: prompt: empty" in err


def test_an_existing_out_file_is_refused_before_anything_is_loaded(ppo_run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "old.jsonl"
    out.write_text("old")
    monkeypatch.setattr(TrainedPolicy, "__init__", lambda *_: pytest.fail("loaded"))
    assert main(["generate", str(ppo_run), "--prompt", "x", "--out", str(out)]) == 2
    assert (
        capsys.readouterr().err
        == f"rlhf: error: --out {out} exists and is never overwritten; choose another file, or remove it\n"
    )
    assert out.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["old.jsonl"]


def test_columns_with_the_name_of_an_output_field_are_kept(ppo_run, tmp_path):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"prompt": "Hello?", "response": "mine", "ended": 7, "row_ended": 8, "id": 9}\n')
    assert main(["generate", str(ppo_run), "--file", str(rows), "--out", str(out)]) == 0
    (found,) = records(out)
    assert found["response"] != "mine"
    assert (found["row_response"], found["row_row_ended"], found["row_ended"], found["id"]) == ("mine", 7, 8, 9)
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("option", ["--prompt", "--system"])
def test_text_that_is_not_utf_8_is_refused(option, capsys):
    more = [] if option == "--prompt" else ["--prompt", "a"]
    assert main(["generate", "none/at/all", option, "a\udcff", *more]) == 2
    assert capsys.readouterr().err.startswith(f"rlhf: error: {option} must be UTF-8, got another byte at character 2;")


def test_a_closed_output_is_not_a_failure(ppo_run, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["generate", str(ppo_run), "--prompt", "a", "--max-new-tokens", "2"]) == 0
    sys.stdout.close()
