"""Ranks that look after each other: who stands where, who failed first, and an end to what hangs. Imports no torch.

The ranks of one machine share a small folder. Files, not a socket: a rank that is stopped, or the one that would serve
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
from rlhf_cli.system.processes import front_end_watch

FOLDER = "RLHF_WATCH_FOLDER"  # set by a supervisor, which deletes it
LOADING = "load"  # imports, downloads and tokenising take what they take: no limit but that of collectives
_GRACE_S = 5.0  # for a rank to end by itself once another has failed
_SILENT_S = 5.0  # without a sign of life a rank is stopped or gone


@dataclass
class Progress:
    """What this rank does; written by its main thread, read by its watchdog."""

    phase: str = LOADING
    step: int = 0
    ticked: float = field(default_factory=time.monotonic)

    def enter(self, phase: str, step: int | None = None) -> None:
        """Say which phase begins, and of which step."""
        self.phase, self.step = phase, self.step if step is None else step
        self.tick()

    def tick(self) -> None:
        """Say that something has been done."""
        self.ticked = time.monotonic()

    def __str__(self) -> str:
        return f"in {self.phase} of step {self.step}"


PROGRESS = Progress()


class Watchdog(threading.Thread):
    """Ends this rank when it makes no progress for `timeout_s`, or when another has failed and it cannot end itself.

    Where the `deepspeed` command has ended, it sends this rank the SIGTERM that nobody hands on.

    on_stall: called with the message on the first rank that notices a stall, before it ends with exit code 8.
    """

    def __init__(
        self, folder: Path, rank: int, num_ranks: int, timeout_s: float, on_stall: Callable[[str], None]
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.folder, self.rank, self.num_ranks, self.timeout_s = folder, rank, num_ranks, timeout_s
        self.on_stall = on_stall
        self._front_end_gone = front_end_watch()
        self._over = threading.Event()

    def run(self) -> None:
        period = min(1.0, self.timeout_s / 10)
        while not self._over.wait(period):
            self._show_life()
            if self._front_end_gone():
                self._front_end_gone = lambda: False
                os.kill(os.getpid(), signal.SIGTERM)  # as if it had been handed on
            failure = self.first_failure()
            if failure is not None and not self._over.wait(_GRACE_S):
                os._exit(failure["code"])
            if PROGRESS.phase != LOADING and self._all_stand_still():
                self._end_stalled()

    def stop(self) -> None:
        """Watch no longer."""
        self._over.set()

    def claim_failure(self, code: int) -> int | None:
        """Say that this rank failed; return None where it is the first, else the first one's exit code."""
        self.stop()
        aside = self.folder / f"failure-{self.rank}-{threading.get_ident()}"  # a rank may fail in both its threads
        with contextlib.suppress(OSError):  # the folder is gone: the supervisor has ended
            aside.write_text(json.dumps({"rank": self.rank, "code": code}), "utf-8")
            try:
                os.link(aside, self.folder / "failure")
                return None
            finally:
                aside.unlink()  # or to claim again would write into `failure`
        first = self.first_failure()
        return None if first is None else int(first["code"])

    def first_failure(self) -> dict[str, Any] | None:
        """Return the rank that failed first and its exit code; None while none has."""
        return _read(self.folder / "failure")

    def _show_life(self) -> None:
        record = {"doing": str(PROGRESS), "for": time.monotonic() - PROGRESS.ticked, "seen": time.time()}
        aside = self.folder / f".rank{self.rank}"
        with contextlib.suppress(OSError):
            aside.write_text(json.dumps(record), "utf-8")
            aside.replace(self.folder / f"rank{self.rank}")

    def _all_stand_still(self) -> bool:
        """Whether no rank that shows life has made progress: the others may only be waiting for one that works."""
        if time.monotonic() - PROGRESS.ticked <= self.timeout_s:
            return False
        records = [_read(self.folder / f"rank{rank}") for rank in range(self.num_ranks) if rank != self.rank]
        alive = [record for record in records if record is not None and time.time() - record["seen"] <= _SILENT_S]
        return all(record["for"] > self.timeout_s - _SILENT_S for record in alive)

    def _end_stalled(self) -> None:
        error = StalledError(f"no progress for {self.timeout_s:g} s (launch.timeout_s): {self.where_ranks_stand()}")
        try:
            if self.claim_failure(error.code) is None:
                self.on_stall(str(error))
            faulthandler.dump_traceback(all_threads=True)
        finally:  # also where nobody listens
            os._exit(error.code)

    def where_ranks_stand(self) -> str:
        """One line: `rank 0 in update of step 3 for 31 s; rank 1 silent for 30 s, last in rollout of step 3`."""
        return "; ".join(_stand(self.folder, rank) for rank in range(self.num_ranks))


def _stand(folder: Path, rank: int) -> str:
    record = _read(folder / f"rank{rank}")
    if record is None:
        return f"rank {rank} never seen"
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
