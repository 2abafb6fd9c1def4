"""`launch.num_gpus=N`: start the ranks of one machine and answer for them. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from omegaconf import OmegaConf

from rlhf_cli.config.load import compose_yaml
from rlhf_cli.engine.ports import free_port

GRACE_S = 30.0
SUPERVISED = "RLHF_SUPERVISOR_PID"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def supervise(verb: list[str], args: list[str], num_ranks: int) -> int:
    """Run `verb` on `num_ranks` ranks of this machine; return the exit code of the first rank that failed, or 0.

    verb: a command, or `check` and a command. Its options are composed once, here; the ranks read them from a file.
    When a rank fails the others are ended; SIGTERM, SIGINT and SIGHUP reach all ranks at once, and the code is then
    128 + the signal's number. Ranks do not outlive this process, also when it is killed.
    """
    with tempfile.TemporaryDirectory(prefix="rlhf-") as folder:
        composed = Path(folder, "composed.yaml")
        OmegaConf.save(compose_yaml(verb[-1], args), composed)
        words = [sys.executable, "-m", "rlhf_cli", *verb, f"--composed={composed}", *args]
        ranks: list[subprocess.Popen[bytes]] = []
        received: list[int] = []
        _forward_signals(ranks, received)
        port = free_port()
        for rank in range(num_ranks):
            ranks.append(subprocess.Popen(words, env=_rank_environment(rank, num_ranks, port), start_new_session=True))
        try:
            code = _wait(ranks)
            return 128 + received[0] if code and received else code
        finally:
            _end(ranks)


def _rank_environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    threads = str(max(1, (os.cpu_count() or 1) // num_ranks))
    return {
        "OMP_NUM_THREADS": threads,
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        SUPERVISED: str(os.getpid()),
    }


def _forward_signals(ranks: Sequence[subprocess.Popen[bytes]], received: list[int]) -> None:
    def forward(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)


def end_with_supervisor() -> None:
    """In a rank that `supervise` started: be ended by the kernel when the supervisor dies, however it dies (Linux)."""
    if SUPERVISED in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ[SUPERVISED]):  # it died before the call
            os.kill(os.getpid(), signal.SIGKILL)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Wait until all ranks are done or one has failed; a rank killed by signal n counts as 128 + n."""
    while True:
        codes = [process.poll() for process in ranks]
        failed = [code for code in codes if code]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """End what still runs: SIGTERM to all at once, SIGKILL to the process group after the grace time."""
    running = [process for process in ranks if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + GRACE_S
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
