"""Scores from a Python function: `module:function` or `path/to/file.py:function`, plain or async."""

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
from rlhf_cli.rewards.timeout_worker import TimedOut, Worker
from rlhf_cli.system.text import one_line
from rlhf_cli.system.watchdog import PROGRESS

_ASKED = ("prompts", "responses", "messages")  # a column of such a name is not given
_CHEAP_S = 1.0  # a batch that failed sooner is asked again one by one, to name the sample
_MAX_SAID = 300  # characters of what an exception says
_FAILURES = (Exception, SystemExit, CancelledError)  # but not KeyboardInterrupt
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def load_function(spec: str, key: str) -> Callable[..., Any]:
    """Return the function that `module:function` or `path/to/file.py:function` names, as seen from this folder.

    A module is imported once. Raises InputError where file, module or function is missing, the import fails, or what
    is found cannot be called; key: the option, for messages.
    """
    place, _, name = spec.rpartition(":")
    file = Path(place).expanduser().resolve() if place.endswith(".py") else None
    try:
        module = _module(place, key) if file is None else _module_of(file, key)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's module comes up with
        raise InputError(f"{key}: cannot import {place}: {_said(error)} ({_where(error, file)})") from error
    if not hasattr(module, name):
        own = [each for each, value in vars(module).items() if _is_of(module, value)]
        raise InputError(f"{key}: {place} has no '{name}'; its functions are: {', '.join(own) or 'none'}")
    function = getattr(module, name)
    if not callable(function):
        raise InputError(f"{key} must be a function, got {spec}, which is of type {type(function).__name__}")
    found: Callable[..., Any] = function
    return found


class FunctionSource:
    """Calls a function with the keywords that it names, batch after batch, in a thread of its own."""

    def __init__(self, config: RewardSourceConfig, key: str) -> None:
        """Import the function; raise InputError where that cannot be, or where it takes nothing that it is given.

        key: the source among the options (reward[0]), for messages.
        """
        assert config.function is not None
        self._function = load_function(config.function, f"{key}.function")
        self._keywords = _Keywords(self._function, f"{key}.function", config.function)
        self._who = f"reward {config.name} ({config.function})"
        self._batch_size = config.batch_size
        self._timeout_s = config.timeout_s
        self._worker: Worker | None = None

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Return one finite score an exchange, in order; raise RewardError, with the sample, where there is none."""
        columns = list(dict.fromkeys(name for exchange in exchanges for name in exchange.columns))
        self._keywords.require(columns, self._who)
        scores: list[float] = []
        for start in range(0, len(exchanges), self._batch_size):
            batch = exchanges[start : start + self._batch_size]
            scores += validated_scores(self._answer(batch, columns), batch, self._who)
            PROGRESS.tick()
        return scores

    def close(self) -> None:
        """Let the thread end."""
        if self._worker is not None:
            self._worker.leave()
            self._worker = None

    def _answer(self, batch: Sequence[Exchange], columns: list[str]) -> Any:
        started = time.monotonic()
        try:
            answer = self._call(batch, columns, self._timeout_s)
        except TimedOut as error:
            sample = _one_of(batch)
            raise RewardError(f"{self._who}: no answer within {self._timeout_s:g} s, for {sample}") from error
        except _FAILURES as error:
            is_cheap = len(batch) > 1 and time.monotonic() - started < _CHEAP_S
            sample, seen = self._culprit(batch, columns, error) if is_cheap else (_one_of(batch), error)
            where = _where(seen, _file_of(self._function))
            raise RewardError(f"{self._who}: {_said(seen)} ({where}), for {sample}") from seen
        if isinstance(answer, dict | set | frozenset):  # they iterate, but over keys, or in any order
            raise RewardError(f"{self._who}: wanted a list of {len(batch)} numbers, got {type(answer).__name__}")
        return answer.detach().cpu() if isinstance(answer, torch.Tensor) else answer

    def _call(self, batch: Sequence[Exchange], columns: list[str], timeout_s: float) -> Any:
        self._worker = self._worker or Worker(self._who)
        try:
            return self._worker.call(lambda: self._function(**self._keywords.of(batch, columns)), timeout_s)
        except (TimedOut, KeyboardInterrupt):
            self.close()  # it hangs, or is not waited for any more; the next call gets another thread
            raise

    def _culprit(
        self, batch: Sequence[Exchange], columns: list[str], error: BaseException
    ) -> tuple[str, BaseException]:
        """Name the exchange that fails alone, too, and how; each is asked once, all within timeout_s."""
        deadline = time.monotonic() + self._timeout_s
        for exchange in batch:
            try:
                self._call([exchange], columns, max(0.001, deadline - time.monotonic()))
            except TimedOut:
                break
            except _FAILURES as alone:
                return describe(exchange), alone
        return _one_of(batch), error


class _Keywords:
    """What a function is called with."""

    def __init__(self, function: Callable[..., Any], key: str, spec: str) -> None:
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # some functions written in C do not say
            parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in _ASKED[:2]]
        self._named = [each.name for each in parameters if each.kind in _BY_NAME]
        self._takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
        self._required = [each.name for each in parameters if each.kind in _BY_NAME and each.default is each.empty]
        wanted = "it is called with prompts=[...], responses=[...] and columns of the prompts, by name"
        for each in parameters:
            if each.kind is inspect.Parameter.POSITIONAL_ONLY and each.default is each.empty:
                raise InputError(f"{key}: {spec} takes '{each.name}' by position only; {wanted}")
        if not self._named and not self._takes_all:
            raise InputError(f"{key}: {spec} takes no keyword; {wanted}")

    def require(self, columns: list[str], who: str) -> None:
        """Raise RewardError where the function needs a column that no row has."""
        for name in self._required:
            if name not in _ASKED and name not in columns:
                there = ", ".join(columns) or "none"
                raise RewardError(f"{who}: it takes '{name}', which no row of the prompts has; columns: {there}")

    def of(self, batch: Sequence[Exchange], columns: list[str]) -> dict[str, list[Any]]:
        """Return the keywords; lists of the batch's length, messages copied, None where a row lacks a column."""
        given: dict[str, list[Any]] = {}
        for name in columns:
            if name not in _ASKED and (self._takes_all or name in self._named):
                given[name] = [exchange.columns.get(name) for exchange in batch]
        if self._takes_all or "prompts" in self._named:
            given["prompts"] = [exchange.prompt for exchange in batch]
        if self._takes_all or "responses" in self._named:
            given["responses"] = [exchange.response for exchange in batch]
        if "messages" in self._named:
            given["messages"] = [[dict(message) for message in exchange.messages] for exchange in batch]
        return given


def _module(name: str, key: str) -> ModuleType:
    _see(Path.cwd())  # which the command `rlhf` does not have, as `python -m` has
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and imports one that is not
        raise InputError(f"{key}: no module '{error.name}', wanted one that is installed or in {Path.cwd()}") from error


def _module_of(file: Path, key: str) -> ModuleType:
    if not file.is_file():
        raise InputError(f"{key}: no file {file}")
    name = f"{file.stem}_{sha256(str(file).encode()).hexdigest()[:8]}"  # another file may have the same stem
    if name in sys.modules:
        return sys.modules[name]
    _see(file.parent)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _see(folder: Path) -> None:
    """Let modules be imported from a folder, after all other places."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _is_of(module: ModuleType, value: Any) -> bool:
    return inspect.isfunction(value) and value.__module__ == module.__name__


def _one_of(batch: Sequence[Exchange]) -> str:
    return describe(batch[0]) if len(batch) == 1 else f"a batch of {len(batch)}, first {describe(batch[0])}"


def _said(error: BaseException) -> str:
    """Return the last line of an exception, as Python would print it."""
    return one_line(traceback.format_exception_only(error)[-1], _MAX_SAID)


def _file_of(function: Callable[..., Any]) -> Path | None:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return Path(code.co_filename) if code is not None else None


def _where(error: BaseException, file: Path | None) -> str:
    """Return `file:line`: the deepest place inside the user's file, else the deepest outside of Python's importing."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    own = [frame for frame in frames if file is not None and Path(frame.filename) == file]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno}"
