"""What happens between two steps: the end that a signal asks for, guards, periodic checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlhf_cli.config.errors import GuardError, Interrupted, NonFiniteError
from rlhf_cli.config.sections import CheckpointConfig
from rlhf_cli.engine import distributed
from rlhf_cli.engine.checkpoint import Checkpoints
from rlhf_cli.engine.signals import StopSignals
from rlhf_cli.engine.watchdog import PROGRESS
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.train.guards import KL_COEF_FACTOR, Ask, Guards

_NON_FINITE = "max_skipped_steps"  # the guard whose stop has an exit code of its own


class Boundary:
    """The end of one step and the beginning of the next; all ranks go through it together."""

    def __init__(
        self,
        config: CheckpointConfig,
        guards: Guards,
        checkpoints: Checkpoints,
        report: Reporter,
        signals: StopSignals,
    ) -> None:
        self.config = config
        self.guards = guards
        self.checkpoints = checkpoints
        self.report = report
        self.signals = signals
        self.best: float | None = None
        self._saved: int | None = None  # step of the newest checkpoint of this process
        self._stop: GuardError | NonFiniteError | None = None

    def resume(self, state: dict[str, Any]) -> dict[str, Any]:
        """Take over what `_save` put beside the trainer's state; return the trainer's."""
        self.guards.load_state_dict(state.pop("guards"))
        self.best = state.pop("best")
        self._saved = state["step"]
        return state

    def before_step(self, state: dict[str, Any]) -> None:
        """Where a signal has reached any rank, save and raise Interrupted on all; state: the trainer's."""
        PROGRESS.enter("step", state["step"] + 1)
        if not distributed.any_rank(self.signals.received is not None):
            return
        self._save(state)
        received = next(one for one in distributed.gather_all(self.signals.received) if one is not None)
        raise Interrupted(
            f"stopped by {received.name} after step {state['step']}, checkpoint saved; go on with run.resume=true"
        )

    def look(self, step: int, metrics: Mapping[str, float]) -> float:
        """Let the guards see a step's metrics, the same on every rank; return what kl_coef is to be multiplied by.

        What they say is told here; a stop takes effect in `after_step`, once the state is saved.
        """
        factor = 1.0
        for finding in self.guards.look(step, metrics):
            match finding.asks:
                case Ask.warn:
                    self.report.say(f"warning: {finding}")
                case Ask.raise_kl_coef:
                    factor = KL_COEF_FACTOR
                    self.report.say(f"warning: {finding}; ppo.kl_coef is multiplied by {factor:g}")
                case Ask.stop:
                    kind = NonFiniteError if finding.guard == _NON_FINITE else GuardError
                    self._stop = self._stop or kind(
                        f"a guard stopped the run at step {step}, checkpoint saved: {finding}; go on with "
                        f"run.resume=true and other settings, or guard.action=warn"
                    )
                case Ask.nothing:
                    pass
        return factor

    def after_step(self, state: dict[str, Any], metrics: Mapping[str, float]) -> None:
        """Save where a checkpoint is due, and raise what a guard has asked for; state: the trainer's after the step."""
        if self._stop is not None:
            self._save(state)
            raise self._stop
        if self.config.every_steps and state["step"] % self.config.every_steps == 0:
            self._save(state, metrics)

    def _save(self, state: dict[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        if self._saved == state["step"]:
            return
        best = self._is_best((metrics or {}).get(self.config.best_metric or "", math.nan))
        with self.report.time("checkpoint"):
            self.checkpoints.save({**state, "best": self.best, "guards": self.guards.state_dict()}, best)
        self._saved = state["step"]

    def _is_best(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        lowest = self.config.best_is_lowest
        is_best = self.best is None or (value < self.best if lowest else value > self.best)
        self.best = value if is_best else self.best
        return is_best
