"""The options of what a run shows while it runs, and of what it leaves to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from rlhf_cli.config.errors import require


class Tracker(Enum):
    tensorboard = "tensorboard"  # event files in the run folder
    wandb = "wandb"
    mlflow = "mlflow"
    trackio = "trackio"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    live: bool = True
    """Show a live view while training, where standard output is a terminal; false: plain lines."""

    html: bool = True
    """Write report.html into the run folder when the run ends, also where a signal, a guard or an error ends it."""

    trackers: list[Tracker] = field(default_factory=lambda: [Tracker.tensorboard])
    """Where metrics go beside metrics.jsonl. Only tensorboard stays in the run folder; the others have extras."""

    project: str = "rlhf"
    """Project at Weights & Biases and Trackio, experiment at MLflow; the run has `run.name` there."""

    def __post_init__(self) -> None:
        require(bool(self.project.strip()), "report.project", f"'{self.project}'", "a name")
        several = len(set(self.trackers)) < len(self.trackers)
        require(not several, "report.trackers", [one.value for one in self.trackers], "each at most once")
