"""What happens between two steps: checkpoints, guards, and a stop after a signal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from rlhf_cli.config.errors import GuardError, InputError, Interrupted, NonFiniteError, RewardError
from rlhf_cli.config.sections import CheckpointConfig
from rlhf_cli.engine import distributed
from rlhf_cli.engine.checkpoint import Checkpoints
from rlhf_cli.system.signals import StopSignals
from rlhf_cli.system.watchdog import PROGRESS
from rlhf_cli.train.guards import KL_COEF_FACTOR, Guards, Reaction
from rlhf_cli.train.run_log import RunLog

_NON_FINITE = "max_skipped_steps"  # the guard whose stop has its own exit code


@dataclass
class StepHooks:
    """Called by a trainer before and after each step, by all ranks together."""

    config: CheckpointConfig
    guards: Guards
    checkpoints: Checkpoints
    report: RunLog
    signals: StopSignals
    inputs: dict[str, str]  # fingerprints, by option, of what a resumed run must find unchanged
    best: float | None = field(default=None, init=False)
    _saved: int | None = field(default=None, init=False)  # step of this process's newest checkpoint
    _stop: GuardError | NonFiniteError | None = field(default=None, init=False)

    @property
    def _best_of(self) -> list[Any]:
        return [self.config.best_metric, self.config.best_is_lowest]

    def resume(self, state: dict[str, Any]) -> dict[str, Any]:
        """Restore guards and best metric from a checkpoint's state; return the trainer's part."""
        del state["inputs"]  # checked by require_same_inputs
        self.guards.load_state_dict(state.pop("guards"))
        best, best_of = state.pop("best"), state.pop("best_of")
        if best_of != self._best_of:
            best = None  # values of another metric do not compare
        self.best = None if self.checkpoints.best_step is None else best  # it may be deleted
        self._saved = state["step"]
        return state

    def require_same_inputs(self, saved: dict[str, str]) -> None:
        """Raise InputError if rows or frozen models differ from those of the checkpoint."""
        changed = [key for key in self.inputs if saved.get(key) != self.inputs[key]]
        if changed:
            raise InputError(
                f"{' and '.join(changed)} changed since this checkpoint was saved. Restore the original files, or "
                "start a new run with a different run.name"
            )

    def before_step(self, state: dict[str, Any]) -> None:
        """If a signal reached any rank, save and raise Interrupted on all; state: the trainer's."""
        self._stop_if_signalled(state)
        PROGRESS.enter("step", state["step"] + 1)

    def after_last_step(self, state: dict[str, Any]) -> None:
        """Save, so that a kill during evaluation or export loses no step."""
        self._stop_if_signalled(state)
        if self.config.every_steps:
            self._save(state)

    def _stop_if_signalled(self, state: dict[str, Any]) -> None:
        if not distributed.any_rank(self.signals.received is not None):
            return
        self._save(state, drop_oldest=False)
        received = next(one for one in distributed.gather_all(self.signals.received) if one is not None)
        raise Interrupted(
            f"stopped by {received.name} after step {state['step']}, checkpoint saved; continue with run.resume=true"
        )

    def give_up(self, state: dict[str, Any], error: RewardError) -> NoReturn:
        """Save the state after the last completed step; raise the error with how to continue."""
        self.report.event("warning", str(error))
        self._save(state, drop_oldest=False)
        raise RewardError(
            f"{error}; stopped after step {state['step']}, checkpoint saved: fix the reward source, then continue with "
            "run.resume=true"
        ) from error

    def check(self, step: int, metrics: Mapping[str, float]) -> float:
        """Run the guards on a step's metrics, equal on all ranks; return the factor for kl_coef.

        A guard's stop takes effect in `after_step`, once the state is saved.
        """
        factor = 1.0
        for finding in self.guards.check(step, metrics):
            match finding.reaction:
                case Reaction.warn:
                    self.report.warn(str(finding), "guard")
                case Reaction.raise_kl_coef:
                    factor = KL_COEF_FACTOR
                    self.report.warn(f"{finding}; ppo.kl_coef is multiplied by {factor:g}", "guard")
                case Reaction.stop:
                    self.report.event("guard", f"{finding}; the run is stopped")
                    kind = NonFiniteError if finding.guard == _NON_FINITE else GuardError
                    self._stop = self._stop or kind(
                        f"a guard stopped the run at step {step}, checkpoint saved: {finding}; continue with "
                        f"run.resume=true and other settings, or guard.action=warn, or from an earlier checkpoint "
                        f"(run.resume=PATH; `rlhf checkpoints` lists them)"
                    )
                case Reaction.wait:
                    pass
        return factor

    def after_step(self, state: dict[str, Any], metrics: Mapping[str, float]) -> None:
        """Save if a checkpoint is due, and raise a guard's stop; state: after the step."""
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
