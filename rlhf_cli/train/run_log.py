"""What the training loops need of a run's log. `report.Reporter` provides it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from rlhf_cli.engine.roofline import Work


class RunLog(Protocol):
    """Where the loops write metrics, warnings and sampled responses."""

    def time(self, phase: str) -> AbstractContextManager[None]:
        """Time a phase of the current step, and measure its peak memory."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Time an evaluation, which belongs to no step."""

    def log(
        self, step: int, metrics: dict[str, float], num_tokens: int, work: Mapping[str, Work] | None = None
    ) -> None:
        """Write the metrics of a step; work: by phase."""

    def log_eval(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of an evaluation."""

    def rollout(self, step: int, record: dict[str, Any]) -> None:
        """Write per-response figures of a step, and one response as text."""

    def warn(self, text: str, kind: str = "warning") -> None:
        """Warn the user, and record the warning as an event."""

    def warn_once(self, text: str) -> None:
        """Warn the first time only."""

    def event(self, kind: str, text: str) -> None:
        """Record an event at the current step; kind: guard, warning or resume."""
