"""Metrics of a run in TensorBoard, Weights & Biases, MLflow and Trackio. Only rank 0 has them.

Each tracker lives in a thread of its own: one that hangs or fails is told of once and left behind, and training neither
stops nor waits for it. A library is imported when its tracker is asked for, never before. A resumed run goes on in the
same tracker run. TensorBoard forgets what an earlier start logged after the step that the run goes on from. The others
cannot: what they already have of a step stays, and is not sent again; but for times and memory it is the same, because
resumed runs repeat an uninterrupted one bit for bit.
"""

from __future__ import annotations

import io
import json
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from enum import Enum
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.redaction import hidden
from rlhf_cli.config.report_options import ReportConfig, Tracker
from rlhf_cli.report.tracker_runs import MLflow, RunWithId, Start, TensorBoard, TrackerRun, Trackio, Wandb
from rlhf_cli.system.durable_files import write_durably
from rlhf_cli.system.text import one_line

NOTES = "trackers.json"  # the ids that a resumed run goes on with, and the last step that each tracker has of a metric
_OPEN_S = 90.0  # longer than W&B's own limit below, whose message says more
_FINISH_S = 60.0
_MOST_WAITING = 1000  # records of a tracker that does not keep up
_PIP = {Tracker.tensorboard: "tensorboard"}  # the others have extras of their names


def require_installed(trackers: Sequence[Tracker]) -> None:
    """Raise InputError where a tracker's package is not installed; imports none."""
    for tracker in trackers:
        found = find_spec(tracker.value)
        if found is None or found.origin is None:  # a mere folder ./wandb is found too, and has no origin
            package = _PIP.get(tracker, f"rlhf[{tracker.value}]")
            raise InputError(
                f"report.trackers has {tracker.value}, whose package is not installed: pip install '{package}', or "
                "leave it out"
            )


class Tracked:
    """All trackers of a run."""

    def __init__(
        self,
        config: ReportConfig,
        name: str,
        folder: Path,
        options: Mapping[str, Any],
        first_step: int,
        say: Callable[[str], None],
    ) -> None:
        """Open the trackers, one after the other; one that cannot be opened is told of and left out.

        name: run.name; options: the configuration, resolved, recorded without what is secret; first_step: the step
        that the run goes on from, 0 for a new one; say: called from the caller's thread only.
        """
        self._say = say
        notes = _Notes(folder / NOTES)
        plain = json.loads(json.dumps(hidden(dict(options)), default=_plain))
        self._channels: list[_Channel] = []
        for tracker in config.trackers:
            start = Start(config.project, name, folder, plain, first_step, notes.run_id(tracker))
            with _muted():
                channel = _Channel(tracker, partial(_open, tracker, start, notes))
                channel.await_opened(_OPEN_S)  # so that libraries are imported one at a time
            self._channels.append(channel)
        self._tell()

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Hand the finite ones of the metrics to every tracker, and return at once."""
        finite = {key: float(value) for key, value in metrics.items() if value is not None and math.isfinite(value)}
        if finite:
            for channel in self._channels:
                channel.put(lambda run: run.log(step, finite))
        self._tell()

    def finish(self, failed: bool) -> None:
        """Close the trackers' runs; what has not reached a tracker within a minute is told of and left behind."""
        deadline = time.monotonic() + _FINISH_S
        with _muted():
            for channel in self._channels:
                channel.put(lambda run: run.finish(failed))
                channel.put(None)
            for channel in self._channels:
                channel.await_ended(deadline)
        self._tell()
        self._channels = []

    def _tell(self) -> None:
        failed = [channel for channel in self._channels if channel.failure is not None]
        self._channels = [channel for channel in self._channels if channel not in failed]
        for channel in failed:
            self._say(f"tracker {channel.tracker.value} is off, the run goes on without it: {channel.failure}")


class _Channel:
    """A tracker's thread, and what waits for it. `failure` says why it is off."""

    def __init__(self, tracker: Tracker, open_run: Callable[[], TrackerRun]) -> None:
        self.tracker = tracker
        self.failure: str | None = None
        self._waiting: queue.Queue[Callable[[TrackerRun], None] | None] = queue.Queue(_MOST_WAITING)
        self._opened, self._ended = threading.Event(), threading.Event()
        threading.Thread(target=self._work, args=(open_run,), daemon=True, name=f"tracker {tracker.value}").start()

    def _work(self, open_run: Callable[[], TrackerRun]) -> None:
        try:
            run = open_run()
            self._opened.set()
            while self.failure is None and (call := self._waiting.get()) is not None:
                call(run)
        except Exception as error:  # whatever a library, a disk or a network can come up with
            self.failure = f"{type(error).__name__}: {one_line(error, 300)}"
        finally:
            self._opened.set()
            self._ended.set()

    def put(self, call: Callable[[TrackerRun], None] | None) -> None:
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            self.failure = self.failure or f"it does not keep up, {_MOST_WAITING} records wait for it"

    def await_opened(self, seconds: float) -> None:
        if not self._opened.wait(seconds):
            self.failure = f"it does not answer within {seconds:g} s"

    def await_ended(self, deadline: float) -> None:
        if not self._ended.wait(max(0.0, deadline - time.monotonic())) and self.failure is None:
            self.failure = "what was logged last has not reached it in time"


class _Notes:
    """trackers.json, written by the threads of all trackers."""

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        self._of: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.exists() else {}

    def run_id(self, tracker: Tracker) -> str | None:
        return self._of[tracker.value]["id"] if tracker.value in self._of else None

    def last_steps(self, tracker: Tracker) -> dict[str, int]:
        return dict(self._of[tracker.value]["last_steps"])

    def write(self, tracker: Tracker, run_id: str, last_steps: Mapping[str, int]) -> None:
        with self._lock:
            self._of[tracker.value] = {"id": run_id, "last_steps": dict(last_steps)}
            write_durably(self._file, json.dumps(self._of) + "\n")


class _Once:
    """Lets through what a tracker does not have yet: of each metric the steps after the last one.

    What W&B or Trackio had taken but not yet written when the process was killed, seconds at most, is missing there.
    """

    def __init__(self, run: RunWithId, tracker: Tracker, notes: _Notes, kept: float = math.inf) -> None:
        """kept: the last step of an earlier start that the tracker does not forget."""
        self._run, self._tracker, self._notes = run, tracker, notes
        last = notes.last_steps(tracker) if notes.run_id(tracker) == run.id else {}
        self._last = {name: int(min(step, kept)) for name, step in last.items()}
        notes.write(tracker, run.id, self._last)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        new = {name: value for name, value in metrics.items() if step > self._last.get(name, -1)}
        if new:
            self._run.log(step, new)
            self._last |= dict.fromkeys(new, step)
            self._notes.write(self._tracker, self._run.id, self._last)

    def finish(self, failed: bool) -> None:
        self._run.finish(failed)


def _open(tracker: Tracker, start: Start, notes: _Notes) -> TrackerRun:
    match tracker:
        case Tracker.tensorboard:
            return _Once(TensorBoard(start), tracker, notes, kept=start.first_step)
        case Tracker.wandb:
            return _Once(Wandb(start), tracker, notes)
        case Tracker.mlflow:
            return _Once(MLflow(start), tracker, notes)
        case Tracker.trackio:
            return _Once(Trackio(start), tracker, notes)


@contextmanager
def _muted() -> Iterator[None]:
    """Drop what libraries print while we wait for them: Trackio has no option to be quiet."""
    with redirect_stdout(io.StringIO()):
        yield


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else str(value)
