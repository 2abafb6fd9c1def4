"""Options of what a run shows while it trains and of the report it leaves."""

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
    """Show a live view while training if standard output is a terminal. `false`: plain lines."""

    html: bool = True
    """Write report.html to the run folder when the run ends, even after a signal, guard or error."""

    trackers: list[Tracker] = field(default_factory=lambda: [Tracker.tensorboard])
    """Trackers that receive the metrics, in addition to metrics.jsonl. Only `tensorboard` is installed
    by default and writes to the run folder."""

    project: str = "rlhf"
    """Project in Weights & Biases and Trackio, experiment in MLflow. The run is called `run.name`."""

    def __post_init__(self) -> None:
        require(bool(self.project.strip()), "report.project", f"'{self.project}'", "a name")
        is_unique = len(set(self.trackers)) == len(self.trackers)
        require(is_unique, "report.trackers", [one.value for one in self.trackers], "a list without duplicates")
