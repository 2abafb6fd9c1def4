"""The command line. Help, lists and configuration errors do not import torch."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import TYPE_CHECKING, NoReturn

import rlhf_cli

if TYPE_CHECKING:
    from rlhf_cli.config.compose import Config

USAGE = """\
usage: rlhf COMMAND [conf=NAME | conf=FILE.yaml] [group=option ...] [key=value ...]

train:
  train-rm      train a reward model on preferences: rlhf train-rm conf=demo
  train-ppo     train a policy with PPO against a reward model: rlhf train-ppo conf=demo

before training:
  list          list the packaged experiments and configuration groups
  show-config   print the composed options of a run: rlhf show-config train-ppo conf=tiny
  plan          estimate the memory, disk and batches of a run: rlhf plan train-ppo conf=demo
  check         check the models and data of a run without training: rlhf check train-ppo conf=tiny
  data          inspect rows as a run reads them, or convert them: rlhf data inspect pairs.jsonl

results of a run:
  report        write an HTML report of a run: rlhf report outputs/tiny
  compare       compare the options and results of runs: rlhf compare outputs/a outputs/b
  checkpoints   list the checkpoints of a run and verify them: rlhf checkpoints outputs/tiny --verify

use trained models:
  generate      generate responses: rlhf generate outputs/tiny --prompt "Where is my order?"
  chat          chat with a policy: rlhf chat outputs/tiny --reward outputs/tiny_rm
  score         score pairs or responses: rlhf score outputs/tiny_rm --file pairs.jsonl
  evaluate      compare a policy with a reference:
                rlhf evaluate outputs/tiny --prompts prompts.jsonl --reward outputs/tiny_rm
  best-of-n     score the best of n responses per prompt:
                rlhf best-of-n MODEL --prompts FILE --reward outputs/tiny_rm
  serve-reward  serve a reward model over HTTP: rlhf serve-reward outputs/demo_rm

options:
  --help, -h    show this text; `rlhf COMMAND --help` lists the options of a command
  --version     show the version

examples:
  rlhf train-rm conf=demo
  rlhf train-ppo conf=demo ppo.kl_coef=0.1
  rlhf train-ppo conf=my/run.yaml launch.num_gpus=4
  rlhf train-ppo conf=my/run.yaml launch.num_gpus=4 run.resume=true
  deepspeed --num_gpus 4 --module rlhf_cli train-ppo conf=my/run.yaml
"""
# Commands whose functions take the arguments and return an exit code; imported when called.
_COMMANDS = {
    "list": "rlhf_cli.cli:_list",
    "show-config": "rlhf_cli.cli:_show_config",
    "check": "rlhf_cli.cli:_check",
    "plan": "rlhf_cli.plan.plan_command:show",
    "data": "rlhf_cli.use.data_commands:run",
    "report": "rlhf_cli.report.report_commands:report",
    "compare": "rlhf_cli.report.report_commands:compare_runs",
    "checkpoints": "rlhf_cli.report.report_commands:checkpoints",
}
AFTER_TRAINING = ("generate", "score", "evaluate", "chat", "best-of-n", "serve-reward")
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
_TRAINING_USAGE = "[conf=NAME | conf=FILE.yaml] [group=option ...] [key=value ...]"


def entry() -> NoReturn:
    """Run one command and end this process with its exit code."""
    from rlhf_cli.system.signals import exit_now

    exit_now(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 success, 2 wrong input (docs/reliability.md lists all)."""
    args = [arg for arg in (sys.argv[1:] if argv is None else argv) if not _is_launcher_flag(arg)]
    from rlhf_cli.config.errors import RunError
    from rlhf_cli.system.text import printable

    _make_streams_usable()
    try:
        return _run(args)
    except RunError as error:
        if os.environ.get("RANK", "0") == "0":
            print(printable(f"rlhf: error: {error}"), file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `rlhf list | head -1`
        _drop_output()
        return 1


def _run(args: list[str]) -> int:
    """Run one command and flush its output; raise DiskError if the output cannot be written."""
    from rlhf_cli.config.errors import DiskError

    try:
        code = _dispatch(args)
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in _CANNOT_WRITE:
            raise
        _drop_output()  # flushing what is left in standard output would fail again
        raise DiskError(f"cannot write the output: {error.strerror}") from error
    return code


def _make_streams_usable() -> None:
    """Open closed standard streams in order, and replace characters that the terminal lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_launcher_flag(arg: str) -> bool:
    return arg.startswith(("--local_rank=", "--local-rank="))  # added by deepspeed and older torchrun


def _dispatch(args: list[str]) -> int:
    from rlhf_cli.config.errors import InputError
    from rlhf_cli.config.schema import COMMANDS

    if not args or args[0] in ("--help", "-h", "help"):
        print(USAGE, end="")
        return 0
    if args[0] == "--version":
        print(f"rlhf {rlhf_cli.__version__}")
        return 0
    command, rest = args[0], args[1:]
    if command in COMMANDS:
        return _print_options(command) if _asks_for_help(rest) else _train(command, rest)
    if command in _COMMANDS:
        code: int = resolve_name(_COMMANDS[command])(rest)
        return code
    if command in AFTER_TRAINING:
        from rlhf_cli.use.commands import run

        return run(command, rest)
    raise InputError(_unknown_command(command, [*COMMANDS, *_COMMANDS, *AFTER_TRAINING]))


def _asks_for_help(args: list[str]) -> bool:
    return "--help" in args or "-h" in args


def _unknown_command(got: str, known: list[str]) -> str:
    import difflib

    nearest = difflib.get_close_matches(got, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(known)}"
    return f"unknown command '{got}'; {hint}"


def _list(args: list[str]) -> int:
    from rlhf_cli.config.errors import InputError
    from rlhf_cli.config.option_docs import experiments, groups

    if _asks_for_help(args):
        print("usage: rlhf list\n\nList the packaged experiments and configuration groups.")
        return 0
    if args:
        raise InputError(f"list takes no arguments, got {' '.join(args)}")
    for found in experiments():
        print(f"rlhf {found.command:9} conf={found.name:14} {found.purpose}")
    print()
    for group, names in groups().items():
        print(f"{group + '=':11} {', '.join(names)}")
    return 0


def _show_config(args: list[str]) -> int:
    from omegaconf import OmegaConf

    from rlhf_cli.config.compose import compose_yaml, to_object

    if _asks_for_help(args):
        print(f"usage: rlhf show-config train-ppo|train-rm {_TRAINING_USAGE}\n\nPrint the composed options of a run.")
        return 0
    command = _training_command("show-config", args)
    composed = compose_yaml(command, args[1:])
    to_object(composed)
    print(OmegaConf.to_yaml(composed), end="")
    return 0


def _check(args: list[str]) -> int:
    if args[:1] in (["--help"], ["-h"]):
        print(f"usage: rlhf check train-ppo|train-rm {_TRAINING_USAGE}\n\nCheck models and data without training.")
        return 0
    command = _training_command("check", args)
    return _print_options(command) if _asks_for_help(args) else _train(command, args[1:], check_only=True)


def _training_command(of: str, args: list[str]) -> str:
    from rlhf_cli.config.errors import InputError
    from rlhf_cli.config.schema import COMMANDS

    if not args or args[0] not in COMMANDS:
        got = args[0] if args else "nothing"
        raise InputError(f"rlhf {of} must be followed by {' or '.join(COMMANDS)}, got {got}")
    return args[0]


def _print_options(command: str) -> int:
    from rlhf_cli.config.option_docs import options
    from rlhf_cli.config.schema import COMMANDS

    print(f"usage: rlhf {command} {_TRAINING_USAGE}\n")
    print(f"{(COMMANDS[command].__doc__ or '').strip()}\n")
    print("Options with type and default (conf= and groups may change the default):")
    for option in options(command):
        print(f"  {option.key}: {option.type} = {option.default}\n      {option.doc}")
    return 0


def _train(command: str, args: list[str], check_only: bool = False) -> int:
    from rlhf_cli.config.compose import as_text, compose_yaml, read_composed, to_object
    from rlhf_cli.config.errors import InputError
    from rlhf_cli.config.paths import check_paths
    from rlhf_cli.report.run_dir import run_folder
    from rlhf_cli.report.trackers import require_installed

    composed = next((arg.partition("=")[2] for arg in args if arg.startswith("--composed=")), None)
    words = [arg for arg in args if not arg.startswith("--composed=")]
    cfg = read_composed(command, composed) if composed else compose_yaml(command, words)
    config, text = to_object(cfg), as_text(cfg)
    launched = "RANK" in os.environ
    num_ranks = int(os.environ.get("WORLD_SIZE", "1")) if launched else config.launch.num_gpus
    config.check_ranks(num_ranks)
    if check_only and not config.check.num_prompts:
        raise InputError("check.num_prompts must be 2 or more for rlhf check, got 0")
    check_paths(config)
    require_installed(config.report.trackers)
    if not check_only and _has_finished(command, config, text):
        print(f"{run_folder(config.run)} has already finished; set another run.name to train again")
        return 0
    if config.launch.num_gpus > 1 and not launched:
        from rlhf_cli.system.supervisor import supervise

        return supervise(["check", command] if check_only else [command], words, num_ranks, run_folder(config.run))
    from rlhf_cli.run.launch import run

    return run(command, words, config, text, check_only)


def _has_finished(command: str, config: Config, text: str) -> bool:
    """Return whether the run has finished; raise InputError or CheckpointError if it cannot start."""
    from rlhf_cli.config.config_diff import require_same
    from rlhf_cli.config.errors import InputError
    from rlhf_cli.engine.checkpoint_manifest import saved_config
    from rlhf_cli.report.run_dir import CONFIG, is_finished, require_unlocked, run_folder

    folder = run_folder(config.run)
    if is_finished(folder):
        require_same(command, (folder / CONFIG).read_text("utf-8"), text, f"{folder} has already finished")
        return True
    if config.run.resumes:
        checkpoint, saved = saved_config(folder, config.run.resume)
        require_same(command, saved, text, f"{checkpoint} was saved")
    is_first = os.environ.get("RANK", "0") == "0"  # it may have made the folder before another rank gets here
    if is_first and folder.exists():
        require_unlocked(folder)
        if not config.run.resumes:
            fix = "set another run.name, or run.resume=true to resume it"
            raise InputError(f"{folder} exists and is never overwritten; {fix}")
    return False
