"""Signals that end a run between two steps, and the end of a process. Imports no torch."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
DOUBLE_S = 2.0  # a scheduler and a supervisor may both deliver one signal


class StopSignals:
    """Remembers the first signal; another one, later than DOUBLE_S after it, ends the process at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at = 0.0

    def install(self) -> None:
        """Take over SIGTERM, SIGINT, SIGHUP and SIGUSR1 of this process."""
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has its reasons
                signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._at = signal.Signals(number), now
        elif now - self._at > DOUBLE_S:
            leave_view()
            os._exit(128 + number)


def leave_view() -> None:
    """Go below what a live view has drawn, and show the cursor again: for who ends without leaving it."""
    if sys.stdout.isatty():
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), b"\x1b[999B\r\n\x1b[?7h\x1b[?25h")


def leave(code: int) -> NoReturn:
    """End this process with `code`, without tearing the interpreter down.

    A thread of gloo's that lets go of its last tensor while Python ends aborts the process, after all was done
    (pytorch/pytorch#190489): an exit code would depend on a race.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
