"""Send metrics to TensorBoard, Weights & Biases, MLflow and Trackio. Only rank 0 has trackers.

Each tracker has its own thread: if one fails or hangs, the run reports it once and continues
without it. A library is imported only if its tracker is selected. A resumed run continues the same
tracker run, and each step is sent once: TensorBoard drops what was logged after the resumed step;
the others keep it, and it is not sent again.

accelerate.tracking is not used: it cannot resume a run, and its logger requires accelerate's process
state, which may initialize torch.distributed.
"""

from __future__ import annotations

import io
import json
import math
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_cli.config.config_diff import flat
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.redaction import redact
from rlhf_cli.config.report_options import ReportConfig, Tracker
from rlhf_cli.system.durable_files import write_durably
from rlhf_cli.system.text import one_line

_OPEN_S = 90.0  # longer than W&B's own limit, whose message is clearer
_FINISH_S = 60.0
_MAX_QUEUED = 1000  # records of a tracker that is too slow

Metrics = Mapping[str, float]


def require_installed(trackers: Sequence[Tracker]) -> None:
    """Raise InputError if a tracker's package is not installed. Imports none of them."""
    for tracker in trackers:
        spec = find_spec(tracker.value)
        if spec is None or spec.origin is None:  # a plain folder ./wandb has a spec without an origin
            package = "tensorboard" if tracker is Tracker.tensorboard else f"rlhf[{tracker.value}]"
            raise InputError(
                f"report.trackers contains {tracker.value}, but its package is not installed: run "
                f"pip install '{package}', or remove it from report.trackers"
            )


class Trackers:
    """All trackers of a run."""

    def __init__(
        self,
        config: ReportConfig,
        name: str,
        folder: Path,
        options: Mapping[str, Any],
        first_step: int,
        warn: Callable[[str], None],
    ) -> None:
        """Open the trackers. One that cannot be opened is reported and left out.

        name: run.name; options: the configuration, sent without secrets; first_step: the step that
        the run resumes from, 0 for a new run; warn: called in the caller's thread only.
        """
        self._warn = warn
        text = json.dumps(
            redact(dict(options)), default=lambda value: value.value if isinstance(value, Enum) else str(value)
        )
        training = _TrainingRun(config.project, name, folder, json.loads(text), first_step)
        self._threads: list[_TrackerThread] = []
        with redirect_stdout(io.StringIO()):  # Trackio has no option to be quiet
            for tracker in config.trackers:
                thread = _TrackerThread(tracker, training)
                self._threads.append(thread)
                if not thread.opened.wait(_OPEN_S):  # libraries are imported one at a time
                    thread.fail(f"it did not open within {_OPEN_S:g} s")
        self._drop_failed()

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Queue the finite metrics for every tracker, and return at once."""
        finite = {key: float(value) for key, value in metrics.items() if value is not None and math.isfinite(value)}
        if finite:
            for thread in self._threads:
                thread.put((step, finite))
        self._drop_failed()

    def finish(self, failed: bool) -> None:
        """Close the tracker runs. Give up trackers that need more than a minute."""
        deadline = time.monotonic() + _FINISH_S
        with redirect_stdout(io.StringIO()):
            for thread in self._threads:
                thread.put(failed)
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    thread.fail("it did not receive the last records in time")
        self._drop_failed()
        self._threads = []

    def _drop_failed(self) -> None:
        failed = [thread for thread in self._threads if thread.failure is not None]
        self._threads = [thread for thread in self._threads if thread not in failed]
        for thread in failed:
            self._warn(f"tracker {thread.tracker.value} is off, the run continues without it: {thread.failure}")


class _TrackerThread(threading.Thread):
    """Makes the calls of one tracker, in order.

    A file in the run folder holds the id of the tracker's run and the last step sent of each
    metric. Records that W&B or Trackio had queued when the process was killed, at most some
    seconds, are lost there.
    """

    def __init__(self, tracker: Tracker, training: _TrainingRun) -> None:
        super().__init__(daemon=True, name=f"tracker {tracker.value}")
        self.tracker = tracker
        self.failure: str | None = None  # why the tracker is off
        self.opened = threading.Event()
        self._queue: queue.Queue[tuple[int, Metrics] | bool] = queue.Queue(_MAX_QUEUED)
        self._training, self._file = training, training.folder / f"tracker_{tracker.value}.json"
        self._state = json.loads(self._file.read_text("utf-8")) if self._file.exists() else {"id": None, "last": {}}
        self.start()

    def put(self, item: tuple[int, Metrics] | bool) -> None:
        """Queue the metrics of a step or, to finish, whether the training run failed."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.fail(f"it is too slow, {_MAX_QUEUED} records are waiting")

    def fail(self, reason: str) -> None:
        """Give the tracker up. The first reason counts."""
        self.failure = self.failure or reason

    def run(self) -> None:
        """Open the tracker's run, and send what is queued until the run ends."""
        try:
            opened = _open(self.tracker, self._training, self._state["id"])
            last = self._state["last"] if self._state["id"] == opened.id else {}
            if self.tracker is Tracker.tensorboard:  # it has dropped the later steps
                last = {name: min(step, self._training.first_step) for name, step in last.items()}
            self._save(opened.id, last)
            self.opened.set()
            while not isinstance(item := self._queue.get(), bool):
                step, metrics = item
                if new := {name: value for name, value in metrics.items() if step > last.get(name, -1)}:
                    opened.log(step, new)
                    last |= dict.fromkeys(new, step)
                    self._save(opened.id, last)
            opened.finish(item)
        except Exception as error:  # anything that a library, a disk or a network may raise
            self.fail(f"{type(error).__name__}: {one_line(error, 300)}")
        self.opened.set()

    def _save(self, run_id: str, last: dict[str, int]) -> None:
        write_durably(self._file, json.dumps({"id": run_id, "last": last}) + "\n")


class _TrainingRun(NamedTuple):
    """What a tracker needs to open or resume its run."""

    project: str
    name: str
    folder: Path
    options: dict[str, Any]  # nested, without secrets
    first_step: int


class _TrackerRun(NamedTuple):
    """An open run of a tracker."""

    id: str
    log: Callable[[int, Metrics], object]
    finish: Callable[[bool], object]  # the argument says whether the training run failed


def _open(tracker: Tracker, training: _TrainingRun, run_id: str | None) -> _TrackerRun:
    """Open the run of a tracker. run_id: of the run to resume, None for a new one."""
    openers = {
        Tracker.tensorboard: _open_tensorboard,
        Tracker.wandb: _open_wandb,
        Tracker.mlflow: _open_mlflow,
        Tracker.trackio: _open_trackio,
    }
    return openers[tracker](training, run_id)


def _open_tensorboard(training: _TrainingRun, run_id: str | None) -> _TrackerRun:
    """Write event files to RUN_DIR/tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    folder = training.folder / "tensorboard"
    writer = SummaryWriter(str(folder), purge_step=training.first_step + 1 if folder.exists() else None)
    text = json.dumps(training.options, indent=2, ensure_ascii=False)
    writer.add_text("options", f"```json\n{text}\n```", training.first_step)
    writer.flush()

    def log(step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # so that a killed run has lost nothing

    return _TrackerRun("tensorboard", log, lambda failed: writer.close())


def _open_wandb(training: _TrainingRun, run_id: str | None) -> _TrackerRun:
    """Open a run at Weights & Biases; with WANDB_MODE=offline, in RUN_DIR/wandb.

    `resume_from`, which would drop the repeated steps, is a private preview. With resume="allow"
    W&B drops records of steps before its last one, as we do. Offline, each start has its own folder
    with the same run id.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    off = (
        "disable_git",
        "disable_code",
        "label_disable",
        "x_disable_stats",
        "x_disable_machine_info",
        "x_disable_meta",
    )
    settings = wandb.Settings(
        **dict.fromkeys(off, True),
        silent=True,  # also prevents a prompt for a missing key
        console="off",
        save_code=False,
        x_save_requirements=False,
        init_timeout=60.0,
        finish_timeout=45.0,
        finish_timeout_raises=True,
    )
    wandb.setup(settings)  # `silent` must be set for the process too
    run = wandb.init(
        project=training.project,
        name=training.name,
        dir=str(training.folder),
        config=training.options,
        allow_val_change=True,
        id=run_id or uuid.uuid4().hex,
        resume="allow",
        reinit="create_new",
        settings=settings,
    )
    return _TrackerRun(
        run.id,
        lambda step, metrics: run.log(dict(metrics), step=step),
        lambda failed: run.finish(exit_code=int(failed)),
    )


def _open_mlflow(training: _TrainingRun, run_id: str | None) -> _TrackerRun:
    """Open a run at MLFLOW_TRACKING_URI, by default in RUN_DIR/mlruns.

    mlflow-skinny has a file store only, which needs MLFLOW_ALLOW_FILE_STORE=true, also to read it
    with `mlflow ui --backend-store-uri RUN_DIR/mlruns`.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or (training.folder / "mlruns").resolve().as_uri())
    if run_id is None:
        found = client.get_experiment_by_name(training.project)
        experiment_id = found.experiment_id if found else client.create_experiment(training.project)
        run_id = client.create_run(experiment_id, run_name=training.name).info.run_id
        params = [
            Param(re.sub(r"[^\w./: -]", "_", key), value if isinstance(value, str) else json.dumps(value))
            for key, value in flat(training.options).items()
        ]
        for first in range(0, len(params), 100):  # the most that a server takes at once
            client.log_batch(run_id, params=params[first : first + 100])
    else:
        client.update_run(run_id, status="RUNNING")

    def log(step: int, metrics: Metrics) -> None:
        now = time.time_ns() // 1_000_000
        client.log_batch(run_id, metrics=[Metric(key, value, now, step) for key, value in metrics.items()])

    return _TrackerRun(run_id, log, lambda failed: client.set_terminated(run_id, "FAILED" if failed else "FINISHED"))


def _open_trackio(training: _TrainingRun, run_id: str | None) -> _TrackerRun:
    """Open a run in TRACKIO_DIR, or at TRACKIO_SPACE_ID or TRACKIO_SERVER_URL.

    Trackio resumes the newest run of a name; it is an error if that is another run.
    """
    from huggingface_hub import constants

    is_offline = constants.HF_HUB_OFFLINE
    is_local = not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"))
    constants.HF_HUB_OFFLINE = is_offline or is_local  # else a local run asks the Hub whose token it finds (0.43)
    try:
        import trackio

        run = trackio.init(
            project=training.project,
            name=training.name,
            config=training.options,
            resume="never" if run_id is None else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    finally:
        constants.HF_HUB_OFFLINE = is_offline
    if run_id not in (None, run.id):
        run.finish()
        raise RuntimeError(f"the newest run {training.name} of project {training.project} is not the one to resume")
    return _TrackerRun(run.id, lambda step, metrics: run.log(dict(metrics), step=step), lambda failed: run.finish())
