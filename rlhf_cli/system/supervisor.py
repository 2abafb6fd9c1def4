"""`launch.num_gpus=N`: starts the ranks of one machine and supervises them. Imports no torch."""

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
from rlhf_cli.system.processes import SUPERVISED, free_port
from rlhf_cli.system.run_status import State, read_status, write_status
from rlhf_cli.system.signals import REPEAT_S, STOPPING, restore_terminal
from rlhf_cli.system.watchdog import FOLDER as WATCH_FOLDER

GRACE_S = 15.0  # after one rank has failed, the time for the others to end by themselves
SAVE_S = 600.0  # after one rank has stopped with a checkpoint, the time for the others to finish theirs


def supervise(verb: list[str], args: list[str], num_ranks: int, run: Path) -> int:
    """Run `verb` on `num_ranks` ranks of this machine; return the exit code of the first rank that failed, or 0.

    verb: a command, or `check` and a command. Its options are composed once, here; the ranks read them from a file.
    run: the run folder. This process writes its status.json when no rank could.
    When a rank fails, the others are ended. SIGTERM, SIGINT, SIGHUP and SIGUSR1 are forwarded to all ranks; a second
    one ends them at once. Ranks never outlive this process, even if it is killed.
    """
    with tempfile.TemporaryDirectory(prefix="rlhf-") as folder:
        composed = Path(folder, "composed.yaml")
        OmegaConf.save(compose_yaml(verb[-1], args), composed)
        words = [sys.executable, "-m", "rlhf_cli", *verb, f"--composed={composed}", *args]
        supervisor = _Supervisor()
        supervisor.install_signal_handlers()
        port = free_port()
        try:
            for rank in range(num_ranks):
                environment = {**_rank_environment(rank, num_ranks, port), WATCH_FOLDER: folder}
                supervisor.start(words, environment)
            failure = supervisor.wait()
            return _report_end(failure, supervisor.ended_by, run)
        finally:
            supervisor.kill()


@dataclass(frozen=True)
class RankFailure:
    """The first rank that failed; its return code is negative if a signal killed it."""

    rank: int
    code: int
    pid: int


class _Supervisor:
    def __init__(self) -> None:
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.ended_by: signal.Signals | None = None  # the signal that arrived a second time
        self._signalled_at: float | None = None

    def install_signal_handlers(self) -> None:
        """Forward every stop signal to all ranks, except those that are ignored (nohup)."""
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._forward)

    def start(self, words: list[str], environment: dict[str, str]) -> None:
        """Start one rank in its own session, so that Ctrl-C reaches it only through this process."""
        self.ranks.append(subprocess.Popen(words, env=environment, start_new_session=True))

    def wait(self) -> RankFailure | None:
        """Wait for all ranks; after a failure, only for the grace time. Return the first failure."""
        first: RankFailure | None = None
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
        """Kill the ranks that still run, and everything they have started."""
        for process in self.ranks:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _failed(self) -> RankFailure | None:
        codes = [(rank, process.poll(), process.pid) for rank, process in enumerate(self.ranks)]
        failed = [RankFailure(rank, code, pid) for rank, code, pid in codes if code]
        return min(failed, key=lambda failure: failure.code, default=None)  # a killed rank before those that lost it

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signalled_at is not None and now - self._signalled_at > REPEAT_S:
            self.ended_by = signal.Signals(number)  # wait() kills the ranks: a handler must not wait for a process
            return
        self._signalled_at = self._signalled_at or now
        for process in self.ranks:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)


def _report_end(failure: RankFailure | None, repeated: signal.Signals | None, run: Path) -> int:
    """Report what no rank could report. Return the exit code: 128 + n if signal n ended the run or killed a rank.

    repeated: the stop signal that arrived a second time.
    """
    if failure is None:
        return 0
    if repeated is None and failure.code > 0:
        return failure.code
    restore_terminal()
    killed_by = repeated or signal.Signals(-failure.code)
    code = 128 + killed_by
    reason = f"rank {failure.rank} (process {failure.pid}) was killed by {killed_by.name}"
    if repeated is not None:
        reason = f"a second {repeated.name} ended the run at once; nothing more was saved"
    print(f"rlhf: error: {reason}", file=sys.stderr)
    status = read_status(run)
    if status.get("state") in (State.running.value, State.failed.value):
        write_status(run, State.failed, status["step"], exit_code=code, reason=reason, rank=failure.rank)
        if repeated is None:
            print("rlhf: continue from the last checkpoint with run.resume=true", file=sys.stderr)
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
