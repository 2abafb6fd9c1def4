"""Options of the guards that detect a failing run. docs/guards.md explains the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rlhf_cli.config.errors import require, require_at_least, require_finite_range
from rlhf_cli.config.objectives import PPOConfig


class GuardAction(Enum):
    warn = "warn"  # warn once and continue
    stop = "stop"  # save a checkpoint and end the run with exit code 10


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    action: GuardAction = GuardAction.stop
    """When a limit is exceeded: save a checkpoint and stop with exit code 10, or only warn."""

    patience: int = 3
    """Consecutive steps beyond a limit before its guard acts."""

    max_skipped_steps: int = 3
    """Act after this many consecutive steps with a skipped update or a non-finite metric; 0: never."""

    grad_norm_ratio: float | None = 100.0
    """Maximum gradient norm, relative to its median over the previous 50 steps. null: no limit."""

    def __post_init__(self) -> None:
        require_at_least(1, "guard", self, "patience")
        require_at_least(0, "guard", self, "max_skipped_steps")
        self._check_limit("grad_norm_ratio", 1.0, 1e9)

    def _check_limit(self, key: str, low: float, high: float) -> None:
        if (limit := getattr(self, key)) is not None:
            require_finite_range(f"guard.{key}", limit, low, high)


@dataclass(frozen=True, kw_only=True)
class PPOGuardConfig(GuardConfig):
    kl_limit: float | None = 100.0
    """Maximum KL to the reference, in nats per response. null: no limit."""

    kl_raises: int = 0
    """Above `kl_limit`, multiply `ppo.kl_coef` by 1.5 in up to this many consecutive steps before
    acting; 0: act at once."""

    length_ratio: float | None = 4.0
    """Maximum factor by which the mean response length may grow or shrink while the score is above its
    baseline. null: no limit."""

    baseline_steps: int = 10
    """First steps whose mean score and response length are the baseline for `length_ratio`."""

    min_entropy: float | None = 0.01
    """Minimum entropy of the policy, in nats per token. null: no limit."""

    min_eos_rate: float | None = 0.05
    """Minimum fraction of responses with EOS, once half of them had it for a few steps. null: no
    limit."""

    value_limit: float | None = 100.0
    """Maximum mean value, mean return and standard deviation of raw advantages, relative to the size
    of the rewards. null: no limit."""

    def __post_init__(self) -> None:
        GuardConfig.__post_init__(self)
        self._check_limit("kl_limit", 1e-6, 1e9)
        require(0 <= self.kl_raises <= 20, "guard.kl_raises", self.kl_raises, "between 0 and 20")
        unlimited = self.kl_limit is None and self.kl_raises > 0
        require(not unlimited, "guard.kl_raises", self.kl_raises, "0 if guard.kl_limit is null")
        self._check_limit("length_ratio", 1.0, 1e9)
        require_at_least(1, "guard", self, "baseline_steps")
        self._check_limit("min_entropy", 0.0, 20.0)
        self._check_limit("min_eos_rate", 0.0, 0.5)
        self._check_limit("value_limit", 1.0, 1e9)

    def check(self, ppo: PPOConfig) -> None:
        """Raise InputError if the KL limits contradict the PPO options."""
        no_coef = self.kl_raises > 0 and ppo.kl_coef == 0
        require(not no_coef, "guard.kl_raises", self.kl_raises, "0 if ppo.kl_coef is 0, which no factor can raise")
        limit, target = self.kl_limit, ppo.kl_target
        above = limit is None or target is None or limit > target
        require(above, "guard.kl_limit", limit, f"above ppo.kl_target {target}, or null")
