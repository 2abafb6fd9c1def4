"""A thread for a caller that waits only so long: code of others may hang, and cannot be stopped."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import torch


class TimedOut(Exception):
    """No answer in time."""


class Worker:
    """Makes one call at a time, in a daemon thread with an event loop of its own for what is async.

    After TimedOut it must be left for a new one: an async call is cancelled, a plain one goes on for nobody.
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._cancel: Callable[[], object] | None = None  # while an async call is awaited
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        threading.Thread(target=self._work, daemon=True, name=name).start()

    def call(self, function: Callable[[], Any], timeout_s: float) -> Any:
        """Return what the function returns, or what that is awaited to; a list, where it is an iterator.

        Raises TimedOut, or what the function raises.
        """
        future: Future[Any] = Future()
        self._calls.put((function, future))
        if not wait([future], timeout_s).done:
            cancel = self._cancel
            if cancel is not None:
                cancel()
            raise TimedOut
        return future.result()

    def leave(self) -> None:
        """End the thread after the call that it makes now."""
        self._calls.put(None)

    def _work(self) -> None:
        torch.set_grad_enabled(False)  # in this thread; no gradient goes through a score
        if self._device is not None:  # which CUDA keeps a thread; a new one would work on the first GPU
            torch.cuda.set_device(self._device)
        with asyncio.Runner() as runner:
            while (job := self._calls.get()) is not None:
                function, future = job
                try:
                    future.set_result(self._result(function, runner))
                except BaseException as error:  # even SystemExit is the caller's to tell of
                    future.set_exception(error)
                del job, function, future  # or the last batch would stay in memory

    def _result(self, function: Callable[[], Any], runner: asyncio.Runner) -> Any:
        result = function()  # outside of the loop: a plain function may call asyncio.run
        if inspect.isawaitable(result):
            result = runner.run(self._awaited(result, runner.get_loop()))
        return list(result) if isinstance(result, Iterator) else result

    async def _awaited(self, result: Awaitable[Any], loop: asyncio.AbstractEventLoop) -> Any:
        task = asyncio.ensure_future(result)
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            return await task
        finally:
            self._cancel = None
