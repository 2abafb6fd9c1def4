"""What is optimised: the options of the reward model's objective and of PPO's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rlhf_cli.config.errors import require, require_finite_range


class ValueInit(Enum):
    reward_model = "reward_model"  # backbone and head of the reward model: V(s) == RM(s) at step 0
    policy = "policy"  # backbone of the policy, fresh head


class KLEstimator(Enum):
    k1 = "k1"  # log-ratio: unbiased, can be negative
    k2 = "k2"  # half its square: biased, never negative
    k3 = "k3"  # exp(-k1) - 1 + k1: unbiased, never negative


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    num_epochs: int = 1
    """Passes over the training pairs; `num_steps` overrides it."""

    num_steps: int | None = None
    """Optimizer steps; unset: as many as `num_epochs` passes take."""

    batch_size: int = 64
    """Pairs per optimizer step, over all ranks."""

    micro_batch_size: int = 8
    """Pairs per forward pass of one rank; gradients are accumulated up to `batch_size`."""

    eval_micro_batch_size: int = 16
    """Pairs per forward pass of one rank in evaluation and calibration."""

    eval_every_steps: int = 50
    """Evaluate on the held-out pairs before training and every so many steps; 0: only after training."""

    num_calibration_pairs: int = 2000
    """Training pairs (at most) whose scores are normalised to mean 0 and deviation 1 in the saved head."""

    def __post_init__(self) -> None:
        require(self.num_epochs >= 1, "train.num_epochs", self.num_epochs, "1 or more")
        require(self.num_steps is None or self.num_steps >= 1, "train.num_steps", self.num_steps, "1 or more")
        require(self.micro_batch_size >= 1, "train.micro_batch_size", self.micro_batch_size, "1 or more")
        require(self.eval_micro_batch_size >= 1, "train.eval_micro_batch_size", self.eval_micro_batch_size, "1 or more")
        require(self.batch_size >= 1, "train.batch_size", self.batch_size, "1 or more")
        require(self.eval_every_steps >= 0, "train.eval_every_steps", self.eval_every_steps, "0 or more")
        pairs = self.num_calibration_pairs
        require(pairs >= 2, "train.num_calibration_pairs", pairs, "2 or more")


@dataclass(frozen=True, kw_only=True)
class ValueModelConfig:
    init: ValueInit = ValueInit.reward_model
    """Where the value model starts: the reward model with its head, or the policy's backbone with a fresh head."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    num_steps: int = 1000
    """Turns of the loop; each is one rollout and its updates."""

    batch_size: int = 64
    """Prompts per step, over all ranks; each gets one response."""

    num_epochs: int = 1
    """Passes over the responses of a step."""

    minibatch_size: int = 32
    """Responses per optimizer update, over all ranks."""

    micro_batch_size: int = 4
    """Responses per forward pass of one rank; gradients are accumulated up to `minibatch_size`."""

    kl_coef: float = 0.05
    """beta: the reward of each token is reduced by beta times its KL to the reference."""

    kl_estimator: KLEstimator = KLEstimator.k1
    """Estimator of that KL; k1 is the one whose expectation the penalty needs."""

    cliprange: float = 0.2
    """The surrogate sees probability ratios in [1 - cliprange, 1 + cliprange]. arXiv:1707.06347 uses 0.2."""

    cliprange_value: float = 0.2
    """A value may move this far from the rollout's value before its loss stops falling."""

    gamma: float = 1.0
    """Discount per token."""

    lam: float = 0.95
    """lambda of generalised advantage estimation."""

    missing_eos_penalty: float = 0.0
    """Subtracted from the score of a response that reached max_new_tokens without EOS."""

    def __post_init__(self) -> None:
        for key in ("num_steps", "batch_size", "num_epochs", "minibatch_size", "micro_batch_size"):
            require(getattr(self, key) >= 1, f"ppo.{key}", getattr(self, key), "1 or more")
        require_finite_range("ppo.kl_coef", self.kl_coef, 0.0, 100.0)
        require(0 < self.cliprange < 1, "ppo.cliprange", self.cliprange, "in (0, 1)")
        require(self.cliprange_value > 0, "ppo.cliprange_value", self.cliprange_value, "positive")
        require_finite_range("ppo.gamma", self.gamma, 0.0, 1.0)
        require_finite_range("ppo.lam", self.lam, 0.0, 1.0)
        require(self.missing_eos_penalty >= 0, "ppo.missing_eos_penalty", self.missing_eos_penalty, "0 or more")
        require(
            self.batch_size % self.minibatch_size == 0,
            "ppo.batch_size",
            f"{self.batch_size} = {self.batch_size / self.minibatch_size:.2f} x minibatch_size {self.minibatch_size}",
            "a multiple of ppo.minibatch_size",
        )
