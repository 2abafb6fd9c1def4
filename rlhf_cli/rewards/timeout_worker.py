"""Calls with a time limit. Python cannot stop a thread: a call that hangs is left in its own."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class CallTimeoutError(Exception):
    """A call took longer than its time limit."""


def call_with_timeout(function: Callable[[], Result], timeout_s: float) -> Result:
    """Return the function's result; raise CallTimeoutError if it takes longer than timeout_s."""
    future: Future[Result] = Future()
    threading.Thread(target=_settle, args=(future, function), daemon=True).start()
    return _result(future, timeout_s)


class TimeoutWorker:
    """Makes one call at a time in a daemon thread, which keeps an event loop for async functions.

    A worker whose call timed out must be replaced: an async call was cancelled, but a plain one
    still runs.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._cancel: Callable[[], object] | None = None  # set while an async call runs
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        threading.Thread(target=self._work, daemon=True, name=name).start()

    def call(self, function: Callable[[], Any], timeout_s: float) -> Any:
        """Return the function's result: awaited if it is awaitable, a list if it is an iterator.

        Raises CallTimeoutError, or what the function raises.
        """
        future: Future[Any] = Future()
        self._calls.put((future, function))
        try:
            return _result(future, timeout_s)
        except CallTimeoutError:
            cancel = self._cancel
            if cancel is not None:
                cancel()
            raise

    def close(self) -> None:
        """End the thread after its current call."""
        self._calls.put(None)

    def _work(self) -> None:
        torch.set_grad_enabled(False)  # for this thread: no gradient goes through a score
        if self._device is not None:  # CUDA keeps a device per thread; a new thread starts with the first GPU
            torch.cuda.set_device(self._device)
        with asyncio.Runner() as runner:
            while (job := self._calls.get()) is not None:
                future, function = job
                _settle(future, lambda function=function: self._evaluate(function, runner))  # type: ignore[misc]
                del job, future, function  # or the last batch would stay in memory

    def _evaluate(self, function: Callable[[], Any], runner: asyncio.Runner) -> Any:
        result = function()  # outside the loop: a plain function may call asyncio.run
        if inspect.isawaitable(result):
            result = runner.run(self._await(result, runner.get_loop()))
        return list(result) if isinstance(result, Iterator) else result

    async def _await(self, result: Awaitable[Any], loop: asyncio.AbstractEventLoop) -> Any:
        task = asyncio.ensure_future(result)
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            return await task
        finally:
            self._cancel = None


def _settle(future: Future[Result], function: Callable[[], Result]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # the caller must see even SystemExit
        future.set_exception(error)


def _result(future: Future[Result], timeout_s: float) -> Result:
    try:
        future.exception(timeout_s)
    except TimeoutError as error:
        raise CallTimeoutError from error
    return future.result()
