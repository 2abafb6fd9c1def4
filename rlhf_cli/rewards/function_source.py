"""Scores from a Python function, plain or async."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import time
import traceback
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.rewards.source import Exchange, describe, validated_scores
from rlhf_cli.rewards.timeout_worker import CallTimeoutError, TimeoutWorker
from rlhf_cli.system.text import one_line
from rlhf_cli.system.watchdog import PROGRESS

_RESERVED = ("prompts", "responses", "messages")  # columns with these names are not passed
_RETRY_SINGLY_S = 1.0  # a batch that fails sooner is repeated one by one, to find the sample
_MAX_SHOWN = 300  # characters of an exception in a message
_FAILURES = (Exception, SystemExit, CancelledError)  # but not KeyboardInterrupt
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def load_function(spec: str, key: str) -> Callable[..., Any]:
    """Return the function `module:function` or `path/to/file.py:function`.

    Paths are relative to the current folder. A module is imported once. key: the option, for
    messages. Raises InputError if the file, the module or the function does not exist, if the
    import fails, or if it is not callable.
    """
    place, _, name = spec.rpartition(":")
    file = Path(place).expanduser().resolve() if place.endswith(".py") else None
    try:
        module = _import_module(place, key) if file is None else _import_file(file, key)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # anything in the user's module
        raise InputError(f"{key}: cannot import {place}: {_last_line(error)} ({_location(error, file)})") from error
    if not hasattr(module, name):
        own = [each for each, value in vars(module).items() if _is_own_function(module, value)]
        raise InputError(f"{key}: {place} has no '{name}'; its functions are: {', '.join(own) or 'none'}")
    function: Any = getattr(module, name)
    if not callable(function):
        raise InputError(f"{key} must be a function, got {spec}, which is of type {type(function).__name__}")
    return function  # type: ignore[no-any-return]


class FunctionSource:
    """Calls a function in a thread of its own, one batch at a time, with the keywords it takes."""

    def __init__(self, config: RewardSourceConfig, key: str) -> None:
        """Import the function; raise InputError if that fails or if it takes no keyword.

        key: the source among the options (reward[0]), for messages.
        """
        assert config.function is not None
        self._function = load_function(config.function, f"{key}.function")
        self._keywords = _Keywords(self._function, f"{key}.function", config.function)
        self._name = f"reward {config.name} ({config.function})"
        self._batch_size = config.batch_size
        self._timeout_s = config.timeout_s
        self._worker: TimeoutWorker | None = None

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Return one finite score for each exchange, in order.

        Raises RewardError, which names the sample, if the function fails.
        """
        columns = list(dict.fromkeys(name for exchange in exchanges for name in exchange.columns))
        self._keywords.check_columns(columns, self._name)
        scores: list[float] = []
        for start in range(0, len(exchanges), self._batch_size):
            batch = exchanges[start : start + self._batch_size]
            scores += validated_scores(self._score_batch(batch, columns), batch, self._name)
            PROGRESS.tick()
        return scores

    def close(self) -> None:
        """End the thread."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _score_batch(self, batch: Sequence[Exchange], columns: list[str]) -> Any:
        started = time.monotonic()
        try:
            scores = self._call(batch, columns, self._timeout_s)
        except CallTimeoutError as error:
            sample = _describe_batch(batch)
            raise RewardError(f"{self._name}: no result within {self._timeout_s:g} s, for {sample}") from error
        except _FAILURES as error:
            found: tuple[str, BaseException] | None = None
            if len(batch) > 1 and time.monotonic() - started < _RETRY_SINGLY_S:
                found = self._find_sample(batch, columns)
            sample, cause = found or (_describe_batch(batch), error)
            location = _location(cause, _file_of(self._function))
            raise RewardError(f"{self._name}: {_last_line(cause)} ({location}), for {sample}") from cause
        if isinstance(scores, dict | set | frozenset):  # iterating gives keys, or any order
            raise RewardError(f"{self._name}: wanted a list of {len(batch)} numbers, got {type(scores).__name__}")
        return scores.detach().cpu() if isinstance(scores, torch.Tensor) else scores

    def _call(self, batch: Sequence[Exchange], columns: list[str], timeout_s: float) -> Any:
        self._worker = self._worker or TimeoutWorker(self._name)
        try:
            return self._worker.call(lambda: self._function(**self._keywords.of(batch, columns)), timeout_s)
        except (CallTimeoutError, KeyboardInterrupt):
            self.close()  # its thread still runs; the next call gets a new one
            raise

    def _find_sample(self, batch: Sequence[Exchange], columns: list[str]) -> tuple[str, BaseException] | None:
        """Return the first exchange that also fails alone, and its exception, within timeout_s."""
        deadline = time.monotonic() + self._timeout_s
        for exchange in batch:
            try:
                self._call([exchange], columns, max(0.001, deadline - time.monotonic()))
            except CallTimeoutError:
                return None
            except _FAILURES as error:
                return describe(exchange), error
        return None


class _Keywords:
    """The keywords that a function takes."""

    def __init__(self, function: Callable[..., Any], key: str, spec: str) -> None:
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # some functions written in C have no signature
            parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in _RESERVED[:2]]
        self._named = [each.name for each in parameters if each.kind in _BY_NAME]
        self._takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
        self._required = [each.name for each in parameters if each.kind in _BY_NAME and each.default is each.empty]
        wanted = "it is called with prompts=[...], responses=[...] and columns of the prompts, by name"
        for each in parameters:
            if each.kind is inspect.Parameter.POSITIONAL_ONLY and each.default is each.empty:
                raise InputError(f"{key}: {spec} takes '{each.name}' by position only; {wanted}")
        if not self._named and not self._takes_all:
            raise InputError(f"{key}: {spec} takes no keyword; {wanted}")

    def check_columns(self, columns: list[str], source: str) -> None:
        """Raise RewardError if the function requires a column that no row has."""
        for name in self._required:
            if name not in _RESERVED and name not in columns:
                got = ", ".join(columns) or "none"
                raise RewardError(f"{source}: it takes '{name}', a column that no prompt has; columns: {got}")

    def of(self, batch: Sequence[Exchange], columns: list[str]) -> dict[str, list[Any]]:
        """Return the keywords of a call: lists with None for a row that lacks a column."""
        values: dict[str, list[Any]] = {
            name: [exchange.columns.get(name) for exchange in batch] for name in columns if name not in _RESERVED
        }
        values["prompts"] = [exchange.prompt for exchange in batch]
        values["responses"] = [exchange.response for exchange in batch]
        kept = {name: value for name, value in values.items() if self._takes_all or name in self._named}
        if "messages" in self._named:  # copies: a function may change them
            kept["messages"] = [[dict(message) for message in exchange.messages] for exchange in batch]
        return kept


def _import_module(name: str, key: str) -> ModuleType:
    _add_to_path(Path.cwd())  # `python -m` does so, the command `rlhf` does not
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists, but one that it imports does not
        raise InputError(f"{key}: no module '{error.name}', wanted an installed one or one in {Path.cwd()}") from error


def _import_file(file: Path, key: str) -> ModuleType:
    if not file.is_file():
        raise InputError(f"{key}: no file {file}")
    name = f"{file.stem}_{sha256(str(file).encode()).hexdigest()[:8]}"  # files may share a stem
    if name in sys.modules:
        return sys.modules[name]
    _add_to_path(file.parent)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look up their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _add_to_path(folder: Path) -> None:
    """Let modules be imported from a folder, after all other places."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _is_own_function(module: ModuleType, value: Any) -> bool:
    return inspect.isfunction(value) and value.__module__ == module.__name__


def _describe_batch(batch: Sequence[Exchange]) -> str:
    return describe(batch[0]) if len(batch) == 1 else f"a batch of {len(batch)}, first {describe(batch[0])}"


def _last_line(error: BaseException) -> str:
    """Return the last line that Python prints for an exception."""
    return one_line(traceback.format_exception_only(error)[-1], _MAX_SHOWN)


def _file_of(function: Callable[..., Any]) -> Path | None:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return Path(code.co_filename) if code is not None else None


def _location(error: BaseException, file: Path | None) -> str:
    """Return `file:line` of the deepest frame in the user's file, else of the deepest frame."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    own = [frame for frame in frames if file is not None and Path(frame.filename) == file]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno}"
