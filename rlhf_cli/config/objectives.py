"""What is optimised: the options of the reward model's objective and of PPO's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rlhf_cli.config.errors import require, require_finite_range


class ValueInit(Enum):
    reward_model = "reward_model"  # backbone and head of the reward model: V(s) == RM(s) at step 0
    policy = "policy"  # backbone of the policy, fresh head


class MissingEOS(Enum):
    subtract = "subtract"  # the score loses the penalty
    replace = "replace"  # the penalty, negated, takes the place of the score


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
    """Rows (pairs, or prompts with their ranked answers) per optimizer step, over all ranks."""

    micro_batch_size: int = 8
    """Rows per forward pass of one rank; gradients are accumulated up to `batch_size`."""

    micro_batch_tokens: int | None = None
    """Instead of `micro_batch_size`: rows of like length, as many as fit in so many tokens, packed or padded."""

    gather: bool = True
    """ZeRO-3: hold the full weights during an update; false: fetch layer by layer in every pass."""

    label_smoothing: float = 0.0
    """Probability that a preference is the wrong way round; `data.confidence_column` gives one for each row instead."""

    centering_coef: float = 0.0
    """Weight of (better + worse score)^2, which keeps scores around 0; 0.01 is usual. arXiv:2312.09244."""

    eval_micro_batch_size: int = 16
    """Rows per forward pass of one rank in evaluation and calibration."""

    eval_every_steps: int = 50
    """Evaluate on the held-out rows before training and every so many steps; 0: only after training."""

    num_calibration_pairs: int = 2000
    """Training rows (at most) whose scores are normalised to mean 0 and deviation 1 in the saved head."""

    def __post_init__(self) -> None:
        require(self.num_epochs >= 1, "train.num_epochs", self.num_epochs, "1 or more")
        require(self.num_steps is None or self.num_steps >= 1, "train.num_steps", self.num_steps, "1 or more")
        require(self.micro_batch_size >= 1, "train.micro_batch_size", self.micro_batch_size, "1 or more")
        require(self.eval_micro_batch_size >= 1, "train.eval_micro_batch_size", self.eval_micro_batch_size, "1 or more")
        require(self.batch_size >= 1, "train.batch_size", self.batch_size, "1 or more")
        tokens = self.micro_batch_tokens
        require(tokens is None or tokens >= 1, "train.micro_batch_tokens", tokens, "1 or more, or null")
        require(0 <= self.label_smoothing < 0.5, "train.label_smoothing", self.label_smoothing, "in [0, 0.5)")
        require_finite_range("train.centering_coef", self.centering_coef, 0.0, 100.0)
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

    micro_batch_tokens: int | None = None
    """Instead of `micro_batch_size`: rows of like length, as many as fit in so many tokens, packed or padded."""

    gather: bool = True
    """ZeRO-3: hold the full weights of the model that is updated; false: fetch layer by layer in every pass."""

    offload_frozen: bool = False
    """Keep reference and reward model in host memory but while they score: less on the GPU, for some seconds a step."""

    reuse_forward: bool = True
    """Start the update from scoring's pass of the policy, where a step is one minibatch, in one pass of each rank."""

    value_warmup_steps: int = 0
    """First steps that train the value model alone and leave the policy as it is."""

    kl_coef: float = 0.05
    """beta: the reward of each token is reduced by beta times its KL to the reference; 0: no penalty there."""

    kl_estimator: KLEstimator = KLEstimator.k1
    """Estimator of that KL; k1 is the one whose expectation the penalty needs."""

    kl_target: float | None = None
    """KL in nats a response to which `kl_coef` is adapted after every step (arXiv:1909.08593); unset: it is fixed."""

    kl_horizon: int = 10000
    """Responses over which the adapted `kl_coef` changes by at most a fifth; at least `batch_size`."""

    kl_loss_coef: float = 0.0
    """Weight of the KL to the reference in the policy's loss, beside or instead of the one in the reward."""

    kl_loss_estimator: KLEstimator = KLEstimator.k2
    """Estimator of that KL; k2 has the KL's gradient, k3 an approximation, k1 one of mean 0."""

    cliprange: float = 0.2
    """The surrogate sees probability ratios in [1 - cliprange, 1 + cliprange]. arXiv:1707.06347 uses 0.2."""

    cliprange_high: float | None = None
    """Another distance for the upper bound, 1 + cliprange_high (arXiv:2503.14476 has 0.28); unset: `cliprange`."""

    dual_clip: float | None = None
    """With a negative advantage the loss grows no more beyond this ratio (arXiv:1912.09729 has 3); unset: off."""

    cliprange_value: float | None = 0.2
    """A value may move this far from the rollout's value before its loss stops falling; null: no clipping."""

    entropy_coef: float = 0.0
    """Weight of the policy's entropy, which the loss is reduced by."""

    target_kl: float | None = None
    """End a step's updates once a minibatch shows a mean `approx_kl` above this, in nats a token; unset: never."""

    gamma: float = 1.0
    """Discount per token."""

    lam: float = 0.95
    """lambda of generalised advantage estimation."""

    reward_clip: float | None = None
    """Scores are clipped to [-reward_clip, reward_clip] before penalties and KL; unset: not."""

    whiten_rewards: bool = False
    """Scale the rewards of a step, KL penalty included, to deviation 1 over its tokens; their mean stays."""

    missing_eos_penalty: float = 0.0
    """What a response that reached max_new_tokens without EOS pays; see `missing_eos`."""

    missing_eos: MissingEOS = MissingEOS.subtract
    """Subtract the penalty from such a response's score, or replace the score with its negative."""

    min_length: int = 0
    """Responses of fewer tokens, EOS included, pay `min_length_penalty`."""

    min_length_penalty: float = 0.0
    """Subtracted from the score of a response shorter than `min_length`."""

    length_penalty: float = 0.0
    """Subtracted from the score for every token of a response beyond `length_penalty_from`."""

    length_penalty_from: int = 0
    """Tokens of a response, EOS included, that cost nothing."""

    repetition_penalty: float = 0.0
    """Times the share of a response's runs of `repetition_size` tokens that stand in it before: subtracted too."""

    repetition_size: int = 4
    """Tokens of a run that may be a repetition."""

    ema_decay: float | None = None
    """Keep a moving average of the policy's weights with this decay an update, exported beside it; unset: none."""

    def __post_init__(self) -> None:
        positive = ("num_steps", "batch_size", "num_epochs", "minibatch_size", "micro_batch_size", "kl_horizon")
        for key in (*positive, "repetition_size"):
            require(getattr(self, key) >= 1, f"ppo.{key}", getattr(self, key), "1 or more")
        for key in ("value_warmup_steps", "min_length", "length_penalty_from"):
            require(getattr(self, key) >= 0, f"ppo.{key}", getattr(self, key), "0 or more")
        penalties = ("missing_eos_penalty", "min_length_penalty", "length_penalty", "repetition_penalty")
        for key in ("kl_coef", "kl_loss_coef", "entropy_coef", *penalties):
            require_finite_range(f"ppo.{key}", getattr(self, key), 0.0, 100.0)
        for key in ("gamma", "lam"):
            require_finite_range(f"ppo.{key}", getattr(self, key), 0.0, 1.0)
        require(0 < self.cliprange < 1, "ppo.cliprange", self.cliprange, "in (0, 1)")
        for key in ("cliprange_high", "cliprange_value", "target_kl", "kl_target", "reward_clip", "micro_batch_tokens"):
            value = getattr(self, key)
            require(value is None or value > 0, f"ppo.{key}", value, "positive or null")
        require(self.dual_clip is None or self.dual_clip > 1, "ppo.dual_clip", self.dual_clip, "over 1 or null")
        decay = self.ema_decay
        require(decay is None or 0 < decay < 1, "ppo.ema_decay", decay, "in (0, 1) or null")
        self._check_together()

    def _check_together(self) -> None:
        require(
            self.batch_size % self.minibatch_size == 0,
            "ppo.batch_size",
            f"{self.batch_size} = {self.batch_size / self.minibatch_size:.2f} x minibatch_size {self.minibatch_size}",
            "a multiple of ppo.minibatch_size",
        )
        horizon, adapts = self.kl_horizon, self.kl_target is not None
        require(not adapts or horizon >= self.batch_size, "ppo.kl_horizon", horizon, "at least ppo.batch_size")
        adapts_zero = self.kl_target is not None and self.kl_coef == 0
        require(not adapts_zero, "ppo.kl_coef", self.kl_coef, "positive where ppo.kl_target adapts it")
        free = self.missing_eos is MissingEOS.replace and not self.missing_eos_penalty
        require(not free, "ppo.missing_eos_penalty", 0, "positive with ppo.missing_eos=replace: it becomes the score")
        both = bool(self.min_length) == bool(self.min_length_penalty)
        require(both, "ppo.min_length_penalty", self.min_length_penalty, "set together with ppo.min_length, or neither")
        free = bool(self.length_penalty_from) and not self.length_penalty
        require(not free, "ppo.length_penalty", 0, "positive with ppo.length_penalty_from")
        warmup = self.value_warmup_steps
        require(warmup < self.num_steps, "ppo.value_warmup_steps", warmup, f"below ppo.num_steps {self.num_steps}")

    def may_reuse_forward(self, weights_are_whole: bool) -> bool:
        """Whether the update may start from scoring's forward pass of the policy, if each rank makes only one pass.

        A step must then be one minibatch, and each rank must keep the policy's full weights until the backward pass.
        """
        return self.reuse_forward and self.minibatch_size == self.batch_size and (weights_are_whole or self.gather)

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of a step, unless `target_kl` ends it early."""
        return self.num_epochs * (self.batch_size // self.minibatch_size)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    path: str | None = None
    """Text file whose language-modelling loss joins the policy's loss (PPO-ptx, arXiv:2203.02155); unset: none."""

    coef: float = 1.0
    """Weight of that loss, a mean over tokens."""

    batch_size: int = 8
    """Blocks of text per optimizer update, over all ranks."""

    micro_batch_size: int = 4
    """Blocks of text per forward pass of one rank."""

    max_tokens: int = 512
    """Tokens of a block; the text is cut into blocks one after the other, in a new order each pass."""

    def __post_init__(self) -> None:
        require_finite_range("pretrain.coef", self.coef, 0.0, 100.0)
        for key, least in (("batch_size", 1), ("micro_batch_size", 1), ("max_tokens", 2)):
            require(getattr(self, key) >= least, f"pretrain.{key}", getattr(self, key), f"{least} or more")
