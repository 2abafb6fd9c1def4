"""One run in each of the libraries that `trackers` feeds; each class imports its library when it is made, and may raise
whatever that library does.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlhf_cli.config.config_diff import flat


class TrackerRun(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def finish(self, failed: bool) -> None: ...


class RunWithId(TrackerRun, Protocol):
    id: str


@dataclass(frozen=True)
class Start:
    project: str
    name: str
    folder: Path
    options: dict[str, Any]  # nested, without secrets
    first_step: int
    run_id: str | None  # of an earlier start; None: this is the first


class TensorBoard:
    """Event files in RUN_DIR/tensorboard. What they have of the step that a run goes on from stays there."""

    id = "tensorboard"

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = start.folder / "tensorboard"
        purge_step = start.first_step + 1 if folder.exists() else None  # readers drop earlier events from there on
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        text = json.dumps(start.options, indent=2, ensure_ascii=False)
        self._writer.add_text("options", f"```json\n{text}\n```", start.first_step)
        self._writer.flush()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # so that a run that is killed has lost nothing

    def finish(self, failed: bool) -> None:
        self._writer.close()


class Wandb:
    """A run at Weights & Biases, or, with WANDB_MODE=offline, in RUN_DIR/wandb for a later `wandb sync`.

    `resume_from` would forget the steps that are done again, but is a private preview of their servers. With
    resume="allow" they drop steps before the last one they have, as we do. Offline, each start leaves a folder with the
    same run id, for `wandb sync RUN_DIR/wandb`; together they hold each step once.
    """

    def __init__(self, start: Start) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            silent=True,  # prompts for no key either: an error says that there is none
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
            label_disable=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_save_requirements=False,
            init_timeout=60.0,
            finish_timeout=45.0,
            finish_timeout_raises=True,
        )
        wandb.setup(settings)  # of the whole process: `silent` is not a run's alone
        self._run = wandb.init(
            project=start.project,
            name=start.name,
            dir=str(start.folder),
            config=start.options,
            allow_val_change=True,
            id=start.run_id or uuid.uuid4().hex,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        self.id: str = self._run.id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run at MLFLOW_TRACKING_URI, or else in RUN_DIR/mlruns.

    mlflow-skinny has no SQL store; the file store that it has is in maintenance mode and wants a word of consent
    (MLFLOW_ALLOW_FILE_STORE), which the reader gives too: `MLFLOW_ALLOW_FILE_STORE=true mlflow ui
    --backend-store-uri RUN_DIR/mlruns`. Values logged for a step can be neither taken back nor replaced.
    """

    def __init__(self, start: Start) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client = MlflowClient(
            os.environ.get("MLFLOW_TRACKING_URI") or (start.folder / "mlruns").resolve().as_uri()
        )
        if start.run_id is None:
            experiment = self._client.get_experiment_by_name(start.project)
            place = experiment.experiment_id if experiment else self._client.create_experiment(start.project)
            self.id: str = self._client.create_run(place, run_name=start.name).info.run_id
            params = [
                Param(re.sub(r"[^\w./: -]", "_", key), value if isinstance(value, str) else json.dumps(value))
                for key, value in flat(start.options).items()  # in the letters that MLflow allows
            ]
            for first in range(0, len(params), 100):  # a server takes no more at once
                self._client.log_batch(self.id, params=params[first : first + 100])
        else:
            self.id = start.run_id
            self._client.update_run(self.id, status="RUNNING")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.time_ns() // 1_000_000
        self._client.log_batch(self.id, metrics=[self._metric(key, value, now, step) for key, value in metrics.items()])

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self.id, status="FAILED" if failed else "FINISHED")


class Trackio:
    """A run in Trackio's folder of this machine, TRACKIO_DIR, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says.

    It is resumed by its name, and then it is the newest one of that name. Trackio writes from a thread of its own and
    makes a warning of what it has lost, which we raise at the next record or at the end. A server that does not answer
    is no such loss: Trackio keeps the records on this machine, says so, and sends them another time.
    """

    _LOSSES = frozenset({"local-sender-loop", "write-logs-to-sqlite", "write-logs-fragment", "persist-logs-locally"})

    def __init__(self, start: Start) -> None:
        with no_hub():
            import trackio

            self._run = trackio.init(
                project=start.project,
                name=start.name,
                config=start.options,
                resume="never" if start.run_id is None else "allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.id: str = self._run.id
        if start.run_id not in (None, self.id):
            self._run.finish()
            raise RuntimeError(
                f"the newest run {start.name} of its project {start.project} is not the one that goes on"
            )
        self._lost: str | None = None
        self._warn = self._run._warn_once
        self._run._warn_once = self._hear  # 0.43 has no other way to hear of it

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)
        self._raise_loss()

    def finish(self, failed: bool) -> None:
        self._run.finish()
        self._raise_loss()

    def _hear(self, key: str, message: str) -> None:
        if key in self._LOSSES:
            self._lost = self._lost or message
        else:
            self._warn(key, message)

    def _raise_loss(self) -> None:
        if self._lost is not None:
            raise RuntimeError(self._lost)


@contextmanager
def no_hub() -> Iterator[None]:
    """Keep a local Trackio run local: it would ask the Hub whose token it finds here (0.43, Run._get_username)."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not (
        os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
    )
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
