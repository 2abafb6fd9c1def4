"""Groups of command-line options that commands on trained models share. Imports no torch."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import InputError, require_text
from rlhf_cli.config.paths import PACKAGE_SCHEME, resolve_path
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.config.sections import DType, RolloutConfig
from rlhf_cli.use.trained_models import Role, TrainedModel, find_model

_WIDTH = 110  # columns of help
_RETRIES = 2  # fewer than in training: a person waits for the result
_MAX_INT = 2**31 - 1
_MIN_TEMPERATURE = 1e-3  # dividing logits by less overflows


class CommandParser(argparse.ArgumentParser):
    """The parser of one command; its errors are InputErrors."""

    def __init__(self, command: str, purpose: str, epilog: str = "") -> None:
        """command: as in `rlhf COMMAND`."""
        super().__init__(
            prog=f"rlhf {command}",
            description=purpose,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=_WIDTH, max_help_position=30),
        )

    def error(self, message: str) -> NoReturn:
        """Raise InputError, with the command that shows the help."""
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")


def integer(low: int, high: int = _MAX_INT) -> Callable[[str], int]:
    """Return an option type: an integer in [low, high]."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            wanted = f"of {low} or more" if high == _MAX_INT else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"wanted an integer {wanted}, got {text!r}")
        return number

    return read


def positive(high: float) -> Callable[[str], float]:
    """Return an option type: a number in (0, high]."""

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
    """How models are loaded; None: as in the model's run."""

    device: str | None
    dtype: DType | None
    system_prompt: str | None
    trust_remote_code: bool

    @staticmethod
    def add_to(parser: CommandParser) -> None:
        """Add the options."""
        group = parser.add_argument_group("models")
        group.add_argument("--system", metavar="TEXT", help="system prompt; '': none; default: as in the run")
        group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
        text = "of the weights; default: as in the run, or bfloat16; float32 for policies on a CPU"
        group.add_argument("--dtype", choices=[dtype.value for dtype in DType], help=text)
        group.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with a model")

    @staticmethod
    def of(given: argparse.Namespace) -> Loading:
        """Return the values of the command line; raise InputError for text that is not UTF-8."""
        require_text("--system", given.system or "")
        dtype = None if given.dtype is None else DType(given.dtype)
        return Loading(given.device, dtype, given.system, given.trust_remote_code)

    def apply(self, model: TrainedModel) -> TrainedModel:
        """Return the model with these options."""
        return model.with_options(self.system_prompt, self.dtype, self.trust_remote_code)


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled; None: as in the policy's run."""

    temperature: float | None
    top_p: float | None
    max_new_tokens: int | None
    batch_size: int | None
    seed: int
    greedy: bool

    @staticmethod
    def add_to(parser: CommandParser, greedy: bool = True, batch_size: bool = True) -> None:
        """Add the options; greedy, batch_size: whether the command has these."""
        group = parser.add_argument_group("sampling (default: as in the policy's run)")
        group.add_argument("--temperature", type=positive(10), metavar="T", help="divides the logits")
        group.add_argument("--top-p", type=positive(1), metavar="P", help="sample from the likeliest tokens up to P")
        group.add_argument("--max-new-tokens", type=integer(1), metavar="N", help="longest response in tokens")
        group.add_argument("--seed", type=integer(0), default=0, metavar="N", help="random seed; default: 0")
        parser.set_defaults(greedy=False, batch_size=None)
        if greedy:
            group.add_argument("--greedy", action="store_true", help="always take the likeliest token")
        if batch_size:
            help_text = "responses at a time; does not change them"
            group.add_argument("--batch-size", type=integer(1), metavar="N", help=help_text)

    @staticmethod
    def of(given: argparse.Namespace) -> Sampling:
        """Return the values of the command line; raise InputError for a tiny temperature."""
        if given.temperature is not None and given.temperature < _MIN_TEMPERATURE:
            raise InputError(
                f"--temperature must be {_MIN_TEMPERATURE:g} or more, got {given.temperature:g}; "
                "use --greedy for the likeliest tokens"
            )
        return Sampling(
            given.temperature, given.top_p, given.max_new_tokens, given.batch_size, given.seed, given.greedy
        )

    def apply(self, rollout: RolloutConfig) -> RolloutConfig:
        """Return a run's options with these in their place."""
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "micro_batch_size": self.batch_size,
        }
        set_options = {name: value for name, value in given.items() if value is not None}
        return replace(rollout, **set_options, gather=True, micro_batch_tokens=None)


@dataclass(frozen=True)
class InputRows:
    """The rows that a command reads."""

    path: str
    split: str
    format: Format
    prompt_column: str
    limit: int | None
    option: str  # the option with the file, for messages

    @staticmethod
    def add_to(parser: CommandParser, option: str, required: bool = True) -> None:
        """Add the options; option: the one with the file."""
        group = parser.add_argument_group("rows")
        what = "a .jsonl, .json, .csv or .parquet file, a save_to_disk folder, pkg://... or a Hub id"
        group.add_argument(option, dest="rows", required=required, metavar="FILE", help=what)
        group.add_argument(
            "--split", default="train", metavar="NAME", help="split of a Hub id or folder; default: train"
        )
        formats = [one.value for one in Format]
        group.add_argument("--format", choices=formats, default="auto", help="format of the rows; default: auto")
        group.add_argument(
            "--prompt-column", default="prompt", metavar="NAME", help="column of the prompts; default: prompt"
        )
        group.add_argument("--limit", type=integer(1), metavar="N", help="read only the first N rows")

    @staticmethod
    def of(given: argparse.Namespace, option: str) -> InputRows:
        """Return the values of the command line; raise InputError if the file does not exist."""
        resolve_path(given.rows, option)
        return InputRows(given.rows, given.split, Format(given.format), given.prompt_column, given.limit, option)


@dataclass(frozen=True)
class Reward:
    """What scores responses, and its options."""

    config: RewardSourceConfig
    model: TrainedModel | None  # None if a function or a service scores
    device: str | None
    option: str  # the option with the reward, for messages

    @staticmethod
    def add_to(parser: CommandParser) -> None:
        """Add the options that configure a reward."""
        group = parser.add_argument_group("reward")
        group.add_argument(
            "--reward-batch-size", type=integer(1), default=16, metavar="N", help="responses at a time; default: 16"
        )
        group.add_argument("--random", action="store_true", help="the reward may score the same response differently")
        group.add_argument(
            "--timeout", type=positive(86400), default=60.0, metavar="S", help="seconds per call or try; default: 60"
        )
        group.add_argument("--auth-env", metavar="NAME", help="environment variable to send as Authorization")
        add_whole_turn(group)

    @staticmethod
    def of(spec: str, given: argparse.Namespace, option: str, *, with_system: bool = False) -> Reward:
        """Return the reward `spec`: a URL, a function (module:name, file.py:name) or a model.

        with_system: whether --system is for the reward model. Otherwise it is for the policy, and
        the exchanges contain it. Raises InputError if the reward does not exist.
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
            config.check(option)
        except InputError as error:  # spell options as on the command line
            raise InputError(str(error).replace(f"{option}.", f"{option}: ")) from error
        model = None
        if kind == "model":
            loading = Loading.of(given)
            loading = loading if with_system else replace(loading, system_prompt=None)
            model = loading.apply(find_model(spec, Role.reward_model, option))
        return Reward(config, model, given.device, option)


def _kind_of(spec: str) -> str:
    if spec.startswith(("http://", "https://")):
        return "url"
    place, _, name = spec.rpartition(":")
    is_function = bool(place) and name.isidentifier() and not Path(spec).exists()
    return "function" if is_function and not spec.startswith(PACKAGE_SCHEME) else "model"


def add_whole_turn(to: Any) -> None:
    """Add the option to a parser or a group of options."""
    to.add_argument(
        "--whole-turn", action="store_true", help="a model also reads what its template writes after a response"
    )


def add_out(parser: CommandParser) -> None:
    """Add the option for a file of JSON lines."""
    parser.add_argument("--out", metavar="FILE.jsonl", help="write a JSON object for every response to this new file")


def out_of(given: argparse.Namespace) -> Path | None:
    """Return the file to write; raise InputError if it exists or cannot be created."""
    if given.out is None:
        return None
    target = Path(given.out)
    if target.suffix != ".jsonl":
        raise InputError(f"--out must be a file that ends in .jsonl, got {target}")
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(f"--out {target}: {'is a folder' if target.is_dir() else 'its folder does not exist'}")
    if target.exists():
        raise InputError(f"--out {target} exists and is never overwritten; choose another file, or remove it")
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
            pass
    except OSError as error:
        raise InputError(f"--out {target}: cannot be written: {error.strerror}") from error
    return target
