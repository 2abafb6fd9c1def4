"""Signals that stop a run between two steps, and how this process exits. Imports no torch."""

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
REPEAT_S = 2.0  # within this time a second signal is the same request: scheduler and supervisor may both send it


class StopSignals:
    """Records the first stop signal; another one more than REPEAT_S later ends the process at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0

    def install(self) -> None:
        """Handle SIGTERM, SIGINT, SIGHUP and SIGUSR1 in this process, except those that are ignored (nohup)."""
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), now
        elif now - self._received_at > REPEAT_S:
            restore_terminal()
            os._exit(128 + number)


def restore_terminal() -> None:
    """Move below the live view and show the cursor again, when the process ends without closing the view."""
    if sys.stdout.isatty():
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), b"\x1b[999B\r\n\x1b[?7h\x1b[?25h")


def exit_now(code: int) -> NoReturn:
    """Flush all output and end this process with `code`, without finalising the interpreter.

    A gloo thread that releases its last tensor during finalisation aborts the process after all work is done
    (pytorch/pytorch#190489), so the exit code would depend on a race.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
