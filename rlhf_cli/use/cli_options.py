"""The command lines of what is done after training: one parser, groups of options that commands share. No torch."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import PACKAGE_SCHEME, resolve_path
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.config.sections import DType, RolloutConfig

_WIDTH = 110  # columns of help
_RETRIES = 2  # of a service: somebody is waiting


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are InputErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError, with where to look."""
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")


def parser(command: str, purpose: str, epilog: str = "") -> Parser:
    """Return a parser for `rlhf COMMAND`."""
    return Parser(
        prog=f"rlhf {command}",
        description=purpose,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=_WIDTH, max_help_position=30),
    )


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """Return a type of options: a whole number between two others."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            wanted = f"{low} or more" if high == 2**31 - 1 else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"wanted a whole number, {wanted}, got {text!r}")
        return number

    return read


def positive(high: float) -> Callable[[str], float]:
    """Return a type of options: a number in (0, high]."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 < number <= high:
            raise argparse.ArgumentTypeError(f"wanted a number in (0, {high:g}], got {text!r}")
        return number

    return read


@dataclass(frozen=True)
class Loading:
    """How models are loaded."""

    device: str | None
    dtype: DType | None
    system_prompt: str | None
    trust_remote_code: bool

    @staticmethod
    def add(to: Parser) -> None:
        """Add the options."""
        group = to.add_argument_group("models")
        group.add_argument("--system", metavar="TEXT", help="system prompt in place of that of the run; '' for none")
        group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one")
        types = [one.value for one in DType]
        group.add_argument(
            "--dtype", choices=types, help="of weights; default: as in the run, or bfloat16; policies on a CPU: float32"
        )
        group.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with a model")

    @staticmethod
    def of(given: argparse.Namespace) -> Loading:
        """Return what was given."""
        dtype = None if given.dtype is None else DType(given.dtype)
        return Loading(given.device, dtype, given.system, given.trust_remote_code)


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; unset is what the run of the policy has, or RolloutConfig's default."""

    temperature: float | None
    top_p: float | None
    max_new_tokens: int | None
    batch_size: int | None
    seed: int
    greedy: bool

    @staticmethod
    def add(to: Parser, greedy: bool = True, batches: bool = True) -> None:
        """Add the options; greedy: whether the likeliest token may be taken instead; batches: whether there are any."""
        group = to.add_argument_group("sampling (defaults: those of the run that trained the policy)")
        group.add_argument("--temperature", type=positive(10), metavar="T", help="divides the logits")
        group.add_argument("--top-p", type=positive(1), metavar="P", help="draw from the likeliest tokens up to P")
        group.add_argument("--max-new-tokens", type=whole(1), metavar="N", help="longest answer in tokens")
        group.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of the draws; default: 0")
        if greedy:
            group.add_argument("--greedy", action="store_true", help="take the likeliest token, draw nothing")
        if batches:
            group.add_argument(
                "--batch-size", type=whole(1), metavar="N", help="answers at a time; changes none of them"
            )

    @staticmethod
    def of(given: argparse.Namespace) -> Sampling:
        """Return what was given."""
        return Sampling(
            given.temperature,
            given.top_p,
            given.max_new_tokens,
            vars(given).get("batch_size"),
            given.seed,
            vars(given).get("greedy", False),
        )

    def over(self, run: RolloutConfig) -> RolloutConfig:
        """Return a run's options with what was given in their place."""
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "micro_batch_size": self.batch_size,
        }
        found = {name: value for name, value in given.items() if value is not None}
        return replace(run, **found, gather=True, micro_batch_tokens=None)


@dataclass(frozen=True)
class Rows:
    """Where rows come from."""

    path: str
    split: str
    format: Format
    prompt_column: str
    limit: int | None

    @staticmethod
    def add(to: Parser, option: str, required: bool = True) -> None:
        """Add the options; option: the one that names the file."""
        group = to.add_argument_group("rows")
        what = "a .jsonl, .json, .csv or .parquet file, a save_to_disk folder, pkg://... or a Hub id"
        group.add_argument(option, dest="rows", required=required, metavar="FILE", help=what)
        group.add_argument("--split", default="train", metavar="NAME", help="of a Hub id or folder; default: train")
        layouts = [one.value for one in Format]
        group.add_argument("--format", choices=layouts, default="auto", help="how rows are laid out; default: auto")
        group.add_argument("--prompt-column", default="prompt", metavar="NAME", help="default: prompt")
        group.add_argument("--limit", type=whole(1), metavar="N", help="take the first N rows")

    @staticmethod
    def of(given: argparse.Namespace, option: str) -> Rows:
        """Return what was given; raise InputError for a file that is not there."""
        resolve_path(given.rows, option)
        return Rows(given.rows, given.split, Format(given.format), given.prompt_column, given.limit)


@dataclass(frozen=True)
class Rewarding:
    """What scores answers, and how it is asked."""

    config: RewardSourceConfig  # its `model` is a path
    loading: Loading

    @staticmethod
    def add(to: Parser) -> None:
        """Add the options on how it is asked."""
        group = to.add_argument_group("reward")
        group.add_argument("--reward-batch-size", type=whole(1), default=16, metavar="N", help="at a time; default: 16")
        group.add_argument("--random", action="store_true", help="the same answer may get another score the next time")
        group.add_argument("--timeout", type=positive(86400), default=60.0, metavar="S", help="seconds a call or try")
        group.add_argument("--auth-env", metavar="NAME", help="environment variable to send as Authorization")
        group.add_argument(
            "--whole-turn", action="store_true", help="a model reads what its template writes at the end"
        )

    @staticmethod
    def of(spec: str, given: argparse.Namespace, key: str, *, with_system: bool = False) -> Rewarding:
        """Return what `spec` names: a URL, module:function or file.py:function, or a trained reward model.

        key: the option or argument, for messages; with_system: whether the system prompt given is the reward model's
        (otherwise it is the policy's, and stands in what is scored). Raises InputError where it does not exist.
        """
        kind = _kind_of(spec)
        options: dict[str, Any] = {kind: spec, **({"retries": _RETRIES} if kind == "url" else {})}
        config = RewardSourceConfig(
            name={"url": "service", "model": "model"}.get(kind, spec.rpartition(":")[2]),
            batch_size=given.reward_batch_size,
            random=given.random,
            timeout_s=given.timeout,
            auth_env=given.auth_env,
            whole_turn=given.whole_turn,
            **options,
        )
        try:
            config.check(key)
        except InputError as error:  # names of options, as command lines spell them
            raise InputError(str(error).replace(f"{key}.", f"{key}: ")) from error
        if kind == "model":
            resolve_path(spec, key)
        loading = Loading.of(given)
        return Rewarding(config, loading if with_system else replace(loading, system_prompt=None))


def _kind_of(spec: str) -> str:
    if spec.startswith(("http://", "https://")):
        return "url"
    place, colon, name = spec.rpartition(":")
    is_function = bool(colon) and bool(place) and name.isidentifier() and not Path(spec).exists()
    return "function" if is_function and not spec.startswith(PACKAGE_SCHEME) else "model"


def add_out(to: Parser) -> None:
    """Add the option for a file of JSON lines."""
    to.add_argument("--out", metavar="FILE.jsonl", help="write every answer there, one JSON object a line")


def out_of(given: argparse.Namespace) -> Path | None:
    """Return the file to write; raise InputError where it is there already, or cannot be made."""
    if given.out is None:
        return None
    target = Path(given.out)
    if target.suffix != ".jsonl":
        raise InputError(f"--out must be a file that ends in .jsonl, got {target}")
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(f"--out {target}: {'is a folder' if target.is_dir() else 'its folder does not exist'}")
    if target.exists():
        raise InputError(f"--out {target} exists and is never overwritten; give another file, or remove it")
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
            pass
    except OSError as error:
        raise InputError(f"--out {target}: cannot be written: {error.strerror}") from error
    return target


def beside(columns: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """Return a row's columns with what is written of it; a column of a name that is written is kept as row_NAME."""
    found = dict(written)
    for name, value in columns.items():
        free = name
        while free in written or (free != name and free in columns):
            free = f"row_{free}"
        found[free] = value
    return found
