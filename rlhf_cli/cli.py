"""argv -> command. Help, lists and configuration errors answer without importing torch."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import rlhf_cli

if TYPE_CHECKING:
    from rlhf_cli.config.compose import Config

USAGE = """\
usage: rlhf COMMAND [conf=NAME | conf=FILE.yaml] [group=option ...] [key=value ...]

commands:
  train-rm      learn a reward model from preference pairs (prompt, chosen, rejected)
  train-ppo     tune a policy with PPO against a reward model
  plan          the memory, disk and batches that a run will take, before it is started: rlhf plan train-ppo conf=demo
  check         what a run would prove of its models and data before it trains: rlhf check train-ppo conf=tiny
  data          look at rows as a run would read them, or write them in one format: rlhf data inspect pairs.jsonl
  report        what a run did, as one HTML file: rlhf report outputs/tiny
  compare       what runs differ in, and how they ended: rlhf compare outputs/a outputs/b
  checkpoints   the checkpoints of a run, and whether they are whole: rlhf checkpoints outputs/tiny --verify
  generate      answers of a trained policy: rlhf generate outputs/tiny --prompt "Where is my order?"
  chat          talk with it: rlhf chat outputs/tiny --reward outputs/tiny_rm
  score         what a reward says of pairs or answers: rlhf score outputs/tiny_rm --file pairs.jsonl
  evaluate      a policy beside a reference: rlhf evaluate outputs/tiny --prompts prompts.jsonl --reward outputs/tiny_rm
  best-of-n     what the best of n answers would score: rlhf best-of-n MODEL --prompts FILE --reward outputs/tiny_rm
  serve-reward  a trained reward model as an HTTP service: rlhf serve-reward outputs/demo_rm
  show-config   print the composed configuration: rlhf show-config train-ppo conf=tiny
  list          the packaged experiments, each with its purpose

options:
  --help, -h    this text; `rlhf COMMAND --help` lists every option with its default
  --version     the version

examples:
  rlhf train-rm conf=demo
  rlhf train-ppo conf=demo ppo.kl_coef=0.1
  rlhf train-ppo conf=my/run.yaml launch.num_gpus=4
  rlhf train-ppo conf=my/run.yaml launch.num_gpus=4 run.resume=true
  deepspeed --num_gpus 4 --module rlhf_cli train-ppo conf=my/run.yaml
"""
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
AFTER_TRAINING = ("generate", "score", "evaluate", "chat", "best-of-n")


def entry() -> NoReturn:
    """Run one command and end this process with its exit code."""
    from rlhf_cli.system.signals import exit_now

    exit_now(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 bad input; docs/reliability.md has them all."""
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
    """Run one command to the end of its output; raise DiskError where that cannot be written."""
    from rlhf_cli.config.errors import DiskError

    try:
        code = _dispatch(args)
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in _CANNOT_WRITE:
            raise
        _drop_output()  # what standard output still holds would fail again
        raise DiskError(f"output cannot be written: {error.strerror}") from error
    return code


def _make_streams_usable() -> None:
    """Open streams that were closed, in the order of their numbers; let no character that a terminal lacks end us."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_launcher_flag(arg: str) -> bool:
    return arg.startswith(("--local_rank=", "--local-rank="))  # deepspeed and older torchrun put it before our words


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
    others = {
        "list": _list,
        "show-config": _show_config,
        "check": _check,
        "checkpoints": _checkpoints,
        "plan": _plan,
        "report": _report,
        "compare": _compare,
        "serve-reward": _serve_reward,
        "data": _data,
    }
    if command in others:
        return others[command](rest)
    if command in AFTER_TRAINING:
        from rlhf_cli.use.commands import run as use

        return use(command, rest)
    if command not in COMMANDS:
        raise InputError(_unknown_command(command))
    if "--help" in rest or "-h" in rest:
        return _help(command)
    return _train(command, rest)


def _unknown_command(got: str) -> str:
    import difflib

    known = ["train-rm", "train-ppo", "plan", "check", "report", "compare", "checkpoints", "data", "serve-reward"]
    known += [*AFTER_TRAINING, "show-config", "list"]
    nearest = difflib.get_close_matches(got, known, n=1)
    return f"unknown command '{got}'" + (
        f"; did you mean {nearest[0]}?" if nearest else f"; there are: {', '.join(known)}"
    )


def _list(args: list[str]) -> int:
    from rlhf_cli.config.errors import InputError
    from rlhf_cli.config.option_docs import experiments, groups

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
    from rlhf_cli.config.errors import InputError
    from rlhf_cli.config.schema import COMMANDS

    if not args or args[0] not in COMMANDS:
        raise InputError(f"show-config wants a command: {' or '.join(COMMANDS)}, got {args[0] if args else 'none'}")
    composed = compose_yaml(args[0], args[1:])
    to_object(composed)
    print(OmegaConf.to_yaml(composed), end="")
    return 0


def _help(command: str) -> int:
    from rlhf_cli.config.option_docs import options
    from rlhf_cli.config.schema import COMMANDS

    print(f"usage: rlhf {command} [conf=NAME | conf=FILE.yaml] [group=option ...] [key=value ...]\n")
    print(f"{(COMMANDS[command].__doc__ or '').strip()}\n")
    print("options, with their type and default (a conf= or group may set another):")
    for option in options(command):
        print(f"  {option.key}: {option.type} = {option.default}\n      {option.doc}")
    return 0


def _check(args: list[str]) -> int:
    from rlhf_cli.config.errors import InputError
    from rlhf_cli.config.schema import COMMANDS

    if not args or args[0] not in COMMANDS:
        raise InputError(f"check wants a command: {' or '.join(COMMANDS)}, got {args[0] if args else 'none'}")
    if "--help" in args or "-h" in args:
        return _help(args[0])
    return _train(args[0], args[1:], check_only=True)


def _checkpoints(args: list[str]) -> int:
    from rlhf_cli.report.checkpoint_listing import show

    return show(args)


def _report(args: list[str]) -> int:
    from rlhf_cli.report.report_commands import report

    return report(args)


def _compare(args: list[str]) -> int:
    from rlhf_cli.report.report_commands import compare_runs

    return compare_runs(args)


def _data(args: list[str]) -> int:
    from rlhf_cli.use.data_commands import run

    return run(args)


def _plan(args: list[str]) -> int:
    from rlhf_cli.plan.plan_command import show

    return show(args)


def _serve_reward(args: list[str]) -> int:
    from rlhf_cli.use.serve import serve

    return serve(args)


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
    if not check_only and _nothing_to_do(command, config, text):
        print(f"{run_folder(config.run)} is finished; nothing to do (give another run.name to run again)")
        return 0
    if config.launch.num_gpus > 1 and not launched:
        from rlhf_cli.system.supervisor import supervise

        return supervise(["check", command] if check_only else [command], words, num_ranks, run_folder(config.run))
    from rlhf_cli.run.launch import run

    return run(command, words, config, text, check_only)


def _nothing_to_do(command: str, config: Config, text: str) -> bool:
    """Say whether the run is finished; raise InputError or CheckpointError where its folder forbids to start it."""
    from rlhf_cli.config.config_diff import require_same
    from rlhf_cli.config.errors import InputError
    from rlhf_cli.engine.checkpoint_manifest import saved_config
    from rlhf_cli.report.run_dir import CONFIG, is_finished, require_unlocked, run_folder

    folder = run_folder(config.run)
    if is_finished(folder):
        require_same(command, (folder / CONFIG).read_text("utf-8"), text, f"{folder} exists and is finished")
        return True
    is_first = os.environ.get("RANK", "0") == "0"  # it may already have made the folder when another rank looks
    if config.run.resumes:
        checkpoint, saved = saved_config(folder, config.run.resume)
        require_same(command, saved, text, f"{checkpoint} was written")
    if is_first and folder.exists():
        require_unlocked(folder)
        if not config.run.resumes:
            raise InputError(
                f"{folder} exists and is never overwritten; give another run.name, or run.resume=true to continue it"
            )
    return False
