"""When a run is going wrong, and what is then done: the options of train/guards.py; docs/guards.md says why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rlhf_cli.config.errors import require, require_finite_range
from rlhf_cli.config.objectives import PPOConfig


class GuardAction(Enum):
    warn = "warn"  # say it once and go on
    stop = "stop"  # save a checkpoint and end the run with exit code 10


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    action: GuardAction = GuardAction.stop
    """Where a guard's limit is passed: save a checkpoint and end the run with exit code 10, or only say it."""

    patience: int = 3
    """Steps in a row that a limit must be passed before its guard acts."""

    max_skipped_steps: int = 3
    """Act after so many steps in a row with a skipped update or a metric that is not finite; 0: never."""

    grad_norm_ratio: float | None = 100.0
    """Largest gradient norm, in multiples of its median over the 50 steps before; null: not looked at."""

    def __post_init__(self) -> None:
        require(self.patience >= 1, "guard.patience", self.patience, "1 or more")
        require(self.max_skipped_steps >= 0, "guard.max_skipped_steps", self.max_skipped_steps, "0 or more")
        self._check_limit("grad_norm_ratio", 1.0, 1e9)

    def _check_limit(self, key: str, low: float, high: float) -> None:
        limit = getattr(self, key)
        if limit is not None:
            require_finite_range(f"guard.{key}", limit, low, high)


@dataclass(frozen=True, kw_only=True)
class PPOGuardConfig(GuardConfig):
    kl_limit: float | None = 100.0
    """Largest KL to the reference, in nats a response; null: not looked at."""

    kl_raises: int = 0
    """Over `kl_limit`, first multiply `ppo.kl_coef` by 1.5 on so many steps in a row, then act; 0: act at once."""

    length_ratio: float | None = 4.0
    """Largest change of the mean response length, up or down, while the score is above its start; null: any."""

    baseline_steps: int = 10
    """First steps, whose mean score and response length are the start that `length_ratio` compares with."""

    min_entropy: float | None = 0.01
    """Least entropy of the policy, in nats a token; null: not looked at."""

    min_eos_rate: float | None = 0.05
    """Least share of responses that end by themselves, once half of them did over some steps; null: not looked at."""

    value_limit: float | None = 100.0
    """Largest mean value, mean return and deviation of the raw advantages, in sizes of the reward; null: any."""

    def __post_init__(self) -> None:
        GuardConfig.__post_init__(self)
        self._check_limit("kl_limit", 1e-6, 1e9)
        require(0 <= self.kl_raises <= 20, "guard.kl_raises", self.kl_raises, "between 0 and 20")
        unlimited = self.kl_limit is None and self.kl_raises > 0
        require(not unlimited, "guard.kl_raises", self.kl_raises, "0 where guard.kl_limit is null")
        self._check_limit("length_ratio", 1.0, 1e9)
        require(self.baseline_steps >= 1, "guard.baseline_steps", self.baseline_steps, "1 or more")
        self._check_limit("min_entropy", 0.0, 20.0)
        self._check_limit("min_eos_rate", 0.0, 0.5)
        self._check_limit("value_limit", 1.0, 1e9)

    def check(self, ppo: PPOConfig) -> None:
        """Raise InputError where the guard of the KL does not fit the objective."""
        no_beta = self.kl_raises > 0 and ppo.kl_coef == 0
        require(not no_beta, "guard.kl_raises", self.kl_raises, "0 where ppo.kl_coef is 0, which no factor raises")
        limit, target = self.kl_limit, ppo.kl_target
        above = limit is None or target is None or limit > target
        require(above, "guard.kl_limit", limit, f"above ppo.kl_target {target}, or null")
