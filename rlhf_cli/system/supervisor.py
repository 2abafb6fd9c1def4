"""`launch.num_gpus=N`: start the ranks of one machine and answer for them. Imports no torch."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from omegaconf import OmegaConf

from rlhf_cli.config.compose import compose_yaml
from rlhf_cli.config.errors import Interrupted
from rlhf_cli.system.ports import free_port
from rlhf_cli.system.processes import SUPERVISED
from rlhf_cli.system.run_status import State, read_status, write_status
from rlhf_cli.system.signals import DOUBLE_S, STOPPING, leave_view
from rlhf_cli.system.watchdog import FOLDER as WATCH_FOLDER

GRACE_S = 15.0  # for the others to end by themselves once one rank has failed: they look after each other
SAVE_S = 600.0  # for the others once one rank has stopped with its checkpoint saved


def supervise(verb: list[str], args: list[str], num_ranks: int, run: Path) -> int:
    """Run `verb` on `num_ranks` ranks of this machine; return the exit code of the first rank that failed, or 0.

    verb: a command, or `check` and a command; its options are composed once, here, and the ranks read them from a file.
    run: the folder of the run, whose status.json this writes where no rank could. When a rank fails the others are
    ended. SIGTERM, SIGINT, SIGHUP and SIGUSR1 reach all ranks at once, and again later end them at once. Ranks do not
    outlive this process, also when it is killed.
    """
    with tempfile.TemporaryDirectory(prefix="rlhf-") as folder:
        composed = Path(folder, "composed.yaml")
        OmegaConf.save(compose_yaml(verb[-1], args), composed)
        words = [sys.executable, "-m", "rlhf_cli", *verb, f"--composed={composed}", *args]
        supervisor = _Supervisor()
        supervisor.take_signals()
        port = free_port()
        try:
            for rank in range(num_ranks):
                environment = {**_rank_environment(rank, num_ranks, port), WATCH_FOLDER: folder}
                supervisor.start(words, environment)
            ended = supervisor.wait()
            return _account_for(ended, supervisor.ended_by, run)
        finally:
            supervisor.kill()


@dataclass(frozen=True)
class Ended:
    """The first rank that ended otherwise than well, and its return code: negative where a signal killed it."""

    rank: int
    code: int
    pid: int


class _Supervisor:
    def __init__(self) -> None:
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.ended_by: signal.Signals | None = None  # a signal that came again
        self._signalled_at: float | None = None

    def take_signals(self) -> None:
        """Send every signal that asks for an end on to all ranks."""
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has its reasons
                signal.signal(number, self._forward)

    def start(self, words: list[str], environment: dict[str, str]) -> None:
        """Start one rank, in a session of its own: a Ctrl-C reaches it through this process alone."""
        self.ranks.append(subprocess.Popen(words, env=environment, start_new_session=True))

    def wait(self) -> Ended | None:
        """Wait for all ranks; once one has failed, no longer than the grace time. Return which was first."""
        first: Ended | None = None
        deadline = math.inf
        while any(process.poll() is None for process in self.ranks) and time.monotonic() < deadline:
            if self.ended_by is not None:
                self.kill()
            first = first or self._failed()
            if first is not None and deadline == math.inf:
                deadline = time.monotonic() + (SAVE_S if first.code == Interrupted.code else GRACE_S)
            time.sleep(0.05)
        return first or self._failed()

    def kill(self) -> None:
        """End what still runs, with all it has started."""
        for process in self.ranks:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _failed(self) -> Ended | None:
        codes = [(rank, process.poll(), process.pid) for rank, process in enumerate(self.ranks)]
        failed = [Ended(rank, code, pid) for rank, code, pid in codes if code]
        return min(failed, key=lambda one: one.code, default=None)  # what was killed comes before who lost it

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signalled_at is not None and now - self._signalled_at > DOUBLE_S:
            self.ended_by = signal.Signals(number)  # wait() kills: a handler must not wait for a process
            return
        self._signalled_at = self._signalled_at or now
        for process in self.ranks:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)


def _account_for(ended: Ended | None, by: signal.Signals | None, run: Path) -> int:
    """Say what no rank could say, and return the exit code: 128 + n where signal n ended the run or killed a rank."""
    if ended is None:
        return 0
    if by is None and ended.code > 0:
        return ended.code
    leave_view()
    killed_by = by or signal.Signals(-ended.code)
    code = 128 + killed_by
    reason = f"rank {ended.rank} (process {ended.pid}) was killed by {killed_by.name}"
    if by is not None:
        reason = f"ended at once by a second {by.name}, nothing more was saved"
    print(f"rlhf: error: {reason}", file=sys.stderr)
    status = read_status(run)
    if status.get("state") in (State.running.value, State.failed.value):
        write_status(run, State.failed, status["step"], exit_code=code, reason=reason, rank=ended.rank)
        if by is None:
            print("rlhf: go on from the last checkpoint with run.resume=true", file=sys.stderr)
    return code


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
