"""Processes of this machine, and what a rank knows of the one that started it (Linux). Imports no torch."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

SUPERVISED = "RLHF_SUPERVISOR_PID"  # set for its ranks by our supervisor
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def state_and_parent(pid: int) -> tuple[str, int] | None:
    """Return the state letter (proc(5): Z is a zombie) and the parent of a process; None where there is none.

    Raises PermissionError where it is somebody else's and hidden.
    """
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return state, int(parent)


def end_with_parent() -> None:
    """In a rank: be ended by the kernel when what started it dies, however it dies.

    That is our supervisor, or deepspeed's launch.py or torchrun, which would leave their ranks behind.
    """
    if SUPERVISED in os.environ or "TORCHELASTIC_RUN_ID" in os.environ or _is_deepspeeds(os.getppid()):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if SUPERVISED in os.environ and os.getppid() != int(os.environ[SUPERVISED]):  # it died before the call
            os.kill(os.getpid(), signal.SIGKILL)


def front_end_watch() -> Callable[[], bool]:
    """Return what says, in a rank, whether the `deepspeed` command has ended while its launch.py goes on.

    It dies of a signal that it hands on to nobody (0.19.8).
    """
    launcher = os.getppid()
    started = state_and_parent(launcher)
    if started is None or not _is_deepspeeds(launcher):
        return lambda: False

    def gone() -> bool:
        now = state_and_parent(launcher)
        return now is not None and now[1] != started[1]

    return gone


def _is_deepspeeds(pid: int) -> bool:
    command = Path(f"/proc/{pid}/cmdline")
    return command.exists() and b"deepspeed.launcher" in command.read_bytes()
