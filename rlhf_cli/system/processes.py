"""Processes of this machine (Linux): state, parent, launcher, and free ports. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

SUPERVISED = "RLHF_SUPERVISOR_PID"  # our supervisor sets it for its ranks
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def state_and_parent(pid: int) -> tuple[str, int] | None:
    """Return the state letter (proc(5): Z is a zombie) and the parent of a process; None if it does not exist.

    Raises PermissionError if the process belongs to another user and is hidden.
    """
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return state, int(parent)


def end_with_parent() -> None:
    """Ask the kernel to kill this rank when its launcher dies, however it dies.

    The launcher is our supervisor, deepspeed's launch.py or torchrun; the last two would leave their ranks running.
    """
    if SUPERVISED in os.environ or "TORCHELASTIC_RUN_ID" in os.environ or _is_deepspeed_launcher(os.getppid()):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if SUPERVISED in os.environ and os.getppid() != int(os.environ[SUPERVISED]):  # died before prctl
            os.kill(os.getpid(), signal.SIGKILL)


def deepspeed_command_watch() -> Callable[[], bool]:
    """Return a function that tells a rank whether the `deepspeed` command has ended while launch.py still runs.

    The command dies of a signal without forwarding it (DeepSpeed 0.19.8).
    """
    launcher = os.getppid()
    started = state_and_parent(launcher)
    if started is None or not _is_deepspeed_launcher(launcher):
        return lambda: False

    def has_ended() -> bool:
        now = state_and_parent(launcher)
        return now is not None and now[1] != started[1]

    return has_ended


def free_port() -> int:
    """Return a TCP port that is free on this machine now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _is_deepspeed_launcher(pid: int) -> bool:
    command = Path(f"/proc/{pid}/cmdline")
    return command.exists() and b"deepspeed.launcher" in command.read_bytes()
