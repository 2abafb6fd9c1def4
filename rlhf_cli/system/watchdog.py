"""The ranks watch each other: where each one is, which failed first, and an end to hangs. Imports no torch.

The ranks of one machine share a small folder. Files are safer than a socket here: a stopped rank, or one that serves
the socket, cannot make the others wait.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import StalledError
from rlhf_cli.system.processes import deepspeed_command_watch

FOLDER = "RLHF_WATCH_FOLDER"  # set by a supervisor, which deletes the folder
LOADING = "load"  # imports, downloads and tokenising have no time limit, except that of collectives
_GRACE_S = 5.0  # after another rank has failed, the time for this one to end by itself
_SILENT_S = 5.0  # a rank without a heartbeat for this long is stopped or gone


@dataclass
class Progress:
    """What this rank is doing. Its main thread writes this; its watchdog reads it."""

    phase: str = LOADING
    step: int = 0
    ticked_at: float = field(default_factory=time.monotonic)

    def enter(self, phase: str, step: int | None = None) -> None:
        """Record that a phase begins, and in which step."""
        self.phase, self.step = phase, self.step if step is None else step
        self.tick()

    def tick(self) -> None:
        """Record that this rank has made progress."""
        self.ticked_at = time.monotonic()

    def __str__(self) -> str:
        return f"in {self.phase} of step {self.step}"


PROGRESS = Progress()


class Watchdog(threading.Thread):
    """Ends this rank when it makes no progress for `timeout_s`, or when another rank has failed and this one hangs.

    If the `deepspeed` command has ended, the watchdog sends this rank the SIGTERM that the command did not forward.

    on_stall: called with the message on the first rank that notices a stall, before that rank exits with code 8.
    """

    def __init__(
        self, folder: Path, rank: int, num_ranks: int, timeout_s: float, on_stall: Callable[[str], None]
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.folder, self.rank, self.num_ranks, self.timeout_s = folder, rank, num_ranks, timeout_s
        self.on_stall = on_stall
        self._deepspeed_command_has_ended = deepspeed_command_watch()
        self._stopped = threading.Event()

    def run(self) -> None:
        period = min(1.0, self.timeout_s / 10)
        while not self._stopped.wait(period):
            self._write_heartbeat()
            if self._deepspeed_command_has_ended():
                self._deepspeed_command_has_ended = lambda: False
                os.kill(os.getpid(), signal.SIGTERM)
            failure = self.first_failure()
            if failure is not None and not self._stopped.wait(_GRACE_S):
                os._exit(failure["code"])
            if PROGRESS.phase != LOADING and self._all_ranks_stalled():
                self._end_stalled()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def claim_failure(self, code: int) -> int | None:
        """Record that this rank failed. Return None if it is the first to fail, else the first rank's exit code."""
        self.stop()
        own = self.folder / f"failure-{self.rank}-{threading.get_ident()}"  # both threads of a rank may fail
        with contextlib.suppress(OSError):  # the folder is gone: the supervisor has ended
            own.write_text(json.dumps({"rank": self.rank, "code": code}), "utf-8")
            try:
                os.link(own, self.folder / "failure")
                return None
            finally:
                own.unlink()  # otherwise a second claim would write into `failure`
        first = self.first_failure()
        return None if first is None else int(first["code"])

    def first_failure(self) -> dict[str, Any] | None:
        """Return the rank that failed first and its exit code; None if no rank has failed."""
        return _read(self.folder / "failure")

    def _write_heartbeat(self) -> None:
        record = {"doing": str(PROGRESS), "for": time.monotonic() - PROGRESS.ticked_at, "seen": time.time()}
        temporary = self.folder / f".rank{self.rank}"
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(record), "utf-8")
            temporary.replace(self.folder / f"rank{self.rank}")

    def _all_ranks_stalled(self) -> bool:
        """Whether no live rank has made progress: a rank may only be waiting for another that still works."""
        if time.monotonic() - PROGRESS.ticked_at <= self.timeout_s:
            return False
        records = [_read(self.folder / f"rank{rank}") for rank in range(self.num_ranks) if rank != self.rank]
        alive = [record for record in records if record is not None and time.time() - record["seen"] <= _SILENT_S]
        return all(record["for"] > self.timeout_s - _SILENT_S for record in alive)

    def _end_stalled(self) -> None:
        error = StalledError(f"no progress for {self.timeout_s:g} s (launch.timeout_s): {self.rank_positions()}")
        try:
            if self.claim_failure(error.code) is None:
                self.on_stall(str(error))
            faulthandler.dump_traceback(all_threads=True)
        finally:  # even if standard error is closed
            os._exit(error.code)

    def rank_positions(self) -> str:
        """Return one line: `rank 0 in update of step 3 for 31 s; rank 1 silent for 30 s, last in rollout of step 3`."""
        return "; ".join(_position(self.folder, rank) for rank in range(self.num_ranks))


def _position(folder: Path, rank: int) -> str:
    record = _read(folder / f"rank{rank}")
    if record is None:
        return f"rank {rank} never started"
    silent = time.time() - record["seen"]
    if silent > _SILENT_S:
        return f"rank {rank} silent for {silent:.0f} s, last {record['doing']}"
    return f"rank {rank} {record['doing']} for {record['for']:.0f} s"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record
