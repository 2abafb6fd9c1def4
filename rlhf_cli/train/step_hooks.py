"""What happens between two steps: the end that a signal asks for, guards, periodic checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from rlhf_cli.config.errors import GuardError, InputError, Interrupted, NonFiniteError, RewardError
from rlhf_cli.config.sections import CheckpointConfig
from rlhf_cli.engine import distributed
from rlhf_cli.engine.checkpoint import Checkpoints
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.system.signals import StopSignals
from rlhf_cli.system.watchdog import PROGRESS
from rlhf_cli.train.guards import KL_COEF_FACTOR, Ask, Guards

_NON_FINITE = "max_skipped_steps"  # the guard whose stop has an exit code of its own


class StepHooks:
    """The end of one step and the beginning of the next; all ranks go through it together."""

    def __init__(
        self,
        config: CheckpointConfig,
        guards: Guards,
        checkpoints: Checkpoints,
        report: Reporter,
        signals: StopSignals,
        inputs: dict[str, str],
    ) -> None:
        """inputs: fingerprints, by option, of what a resumed run must find unchanged."""
        self.config = config
        self.guards = guards
        self.checkpoints = checkpoints
        self.report = report
        self.signals = signals
        self.inputs = inputs
        self.best: float | None = None
        self._saved: int | None = None  # step of the newest checkpoint of this process
        self._stop: GuardError | NonFiniteError | None = None

    @property
    def _best_of(self) -> list[Any]:
        return [self.config.best_metric, self.config.best_is_lowest]

    def resume(self, state: dict[str, Any]) -> dict[str, Any]:
        """Take over what `_save` put beside the trainer's state; return the trainer's."""
        del state["inputs"]  # require_same_inputs has seen them
        self.guards.load_state_dict(state.pop("guards"))
        best, best_of = state.pop("best"), state.pop("best_of", self._best_of)
        if best_of != self._best_of:
            best = None  # a value of another metric is not to be beaten
        self.best = None if self.checkpoints.best_step is None else best  # one that is gone is not to be beaten
        self._saved = state["step"]
        return state

    def require_same_inputs(self, was: dict[str, str]) -> None:
        """Raise InputError where the rows or the frozen models are not those that a checkpoint was written with."""
        changed = [key for key in self.inputs if was.get(key) != self.inputs[key]]
        if changed:
            raise InputError(
                f"what {' and '.join(changed)} names has changed since the checkpoint was written: its rows or weights "
                "are not those of the run; put them back, or start anew with another run.name"
            )

    def before_step(self, state: dict[str, Any]) -> None:
        """Where a signal has reached any rank, save and raise Interrupted on all; state: the trainer's."""
        self._end_if_asked(state)
        PROGRESS.enter("step", state["step"] + 1)

    def after_last_step(self, state: dict[str, Any]) -> None:
        """Save, so that a kill during the answers and the export costs no step; raise Interrupted as `before_step`."""
        self._end_if_asked(state)
        if self.config.every_steps:
            self._save(state)

    def _end_if_asked(self, state: dict[str, Any]) -> None:
        if not distributed.any_rank(self.signals.received is not None):
            return
        self._save(state, drop_oldest=False)
        received = next(one for one in distributed.gather_all(self.signals.received) if one is not None)
        raise Interrupted(
            f"stopped by {received.name} after step {state['step']}, checkpoint saved; go on with run.resume=true"
        )

    def give_up(self, state: dict[str, Any], error: RewardError) -> NoReturn:
        """Save what the last whole step left, and raise the error, with how to go on; all ranks together."""
        self.report.event("warning", str(error))
        self._save(state, drop_oldest=False)
        raise RewardError(
            f"{error}; stopped after step {state['step']}, checkpoint saved: mend it, and go on with run.resume=true"
        ) from error

    def look(self, step: int, metrics: Mapping[str, float]) -> float:
        """Let the guards see a step's metrics, the same on every rank; return what kl_coef is to be multiplied by.

        What they say is told here; a stop takes effect in `after_step`, once the state is saved.
        """
        factor = 1.0
        for finding in self.guards.look(step, metrics):
            match finding.asks:
                case Ask.warn:
                    self.report.warn(str(finding), "guard")
                case Ask.raise_kl_coef:
                    factor = KL_COEF_FACTOR
                    self.report.warn(f"{finding}; ppo.kl_coef is multiplied by {factor:g}", "guard")
                case Ask.stop:
                    self.report.event("guard", f"{finding}; the run is stopped")
                    kind = NonFiniteError if finding.guard == _NON_FINITE else GuardError
                    self._stop = self._stop or kind(
                        f"a guard stopped the run at step {step}, checkpoint saved: {finding}; go on with "
                        f"run.resume=true and other settings, or guard.action=warn, or from an earlier checkpoint "
                        f"(run.resume=PATH; `rlhf checkpoints` lists them)"
                    )
                case Ask.nothing:
                    pass
        return factor

    def after_step(self, state: dict[str, Any], metrics: Mapping[str, float]) -> None:
        """Save where a checkpoint is due, and raise what a guard has asked for; state: the trainer's after the step."""
        due = self.config.every_steps and state["step"] % self.config.every_steps == 0
        if due or self._stop is not None:
            self._save(state, metrics if due else None, drop_oldest=self._stop is None)
        if self._stop is not None:
            raise self._stop

    def _save(
        self, state: dict[str, Any], metrics: Mapping[str, float] | None = None, drop_oldest: bool = True
    ) -> None:
        if self._saved == state["step"]:
            return
        best = self._is_best((metrics or {}).get(self.config.best_metric or "", math.nan))
        own = {"best": self.best, "best_of": self._best_of, "guards": self.guards.state_dict(), "inputs": self.inputs}
        with self.report.time("checkpoint"):
            self.checkpoints.save({**state, **own}, best, drop_oldest)
        self._saved = state["step"]

    def _is_best(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        lowest = self.config.best_is_lowest
        is_best = self.best is None or (value < self.best if lowest else value > self.best)
        self.best = value if is_best else self.best
        return is_best
