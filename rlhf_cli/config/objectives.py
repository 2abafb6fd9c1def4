"""The training objectives: options of the reward model and of PPO."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rlhf_cli.config.errors import require, require_at_least, require_finite_range


class ValueInit(Enum):
    reward_model = "reward_model"  # its backbone and head: V(s) == RM(s) at step 0
    policy = "policy"  # the policy's backbone with a new head


class MissingEOS(Enum):
    subtract = "subtract"  # subtract the penalty from the score
    replace = "replace"  # replace the score by the negative penalty


class KLEstimator(Enum):
    k1 = "k1"  # log-ratio: unbiased, may be negative
    k2 = "k2"  # half its square: biased, never negative
    k3 = "k3"  # exp(-k1) - 1 + k1: unbiased, never negative


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    num_epochs: int = 1
    """Passes over the training rows. Ignored if `num_steps` is set."""

    num_steps: int | None = None
    """Optimizer steps. Unset: `num_epochs` passes."""

    batch_size: int = 64
    """Rows per optimizer step over all ranks: pairs, or prompts with their ranked responses."""

    micro_batch_size: int = 8
    """Rows per forward pass of one rank. Gradients accumulate up to `batch_size`."""

    micro_batch_tokens: int | None = None
    """Replaces `micro_batch_size`: batch rows of similar length up to this many tokens, packed or
    padded."""

    gather: bool = True
    """ZeRO-3: hold the full weights during an update. `false`: fetch them layer by layer."""

    label_smoothing: float = 0.0
    """Probability that a preference is wrong. For one per row, use `data.confidence_column`."""

    centering_coef: float = 0.0
    """Coefficient of (chosen + rejected score)^2, which keeps scores near 0 (arXiv:2312.09244; 0.01 is
    common)."""

    eval_micro_batch_size: int = 16
    """Rows per forward pass of one rank in evaluation and calibration."""

    eval_every_steps: int = 50
    """Evaluate on the held-out rows before training and every this many steps; 0: only at the end."""

    num_calibration_pairs: int = 2000
    """Maximum number of training rows used to normalise the scores of the saved head to mean 0 and
    standard deviation 1."""

    def __post_init__(self) -> None:
        positive = ("num_epochs", "num_steps", "batch_size", "micro_batch_size", "micro_batch_tokens")
        require_at_least(1, "train", self, *positive, "eval_micro_batch_size")
        require(0 <= self.label_smoothing < 0.5, "train.label_smoothing", self.label_smoothing, "in [0, 0.5)")
        require_finite_range("train.centering_coef", self.centering_coef, 0.0, 100.0)
        require_at_least(0, "train", self, "eval_every_steps")
        require_at_least(2, "train", self, "num_calibration_pairs")


@dataclass(frozen=True, kw_only=True)
class ValueModelConfig:
    init: ValueInit = ValueInit.reward_model
    """Initialise from the reward model, including its head, or from the policy with a new head."""


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    num_steps: int = 1000
    """Training steps. Each consists of one rollout and its updates."""

    batch_size: int = 64
    """Prompts per step over all ranks, with one response each."""

    num_epochs: int = 1
    """Passes over the responses of a step."""

    minibatch_size: int = 32
    """Responses per optimizer update over all ranks."""

    micro_batch_size: int = 4
    """Responses per forward pass of one rank. Gradients accumulate up to `minibatch_size`."""

    micro_batch_tokens: int | None = None
    """Replaces `micro_batch_size`: batch responses of similar length up to this many tokens, packed or
    padded."""

    gather: bool = True
    """ZeRO-3: hold the full weights of the model being updated. `false`: fetch them layer by layer."""

    offload_frozen: bool = False
    """Keep the reference and reward models in CPU memory except while scoring. Saves GPU memory; adds
    a few seconds per step."""

    reuse_forward: bool = True
    """Reuse the policy's forward pass from scoring for the update, if a step is one minibatch and one
    forward pass per rank."""

    value_warmup_steps: int = 0
    """Train only the value model in this many first steps."""

    kl_coef: float = 0.05
    """beta: the reward of each token is reduced by beta times its KL to the reference; 0 disables."""

    kl_estimator: KLEstimator = KLEstimator.k1
    """Estimator of the KL in the reward. k1 has the expectation that the penalty needs."""

    kl_target: float | None = None
    """Adapt `kl_coef` after each step towards this KL, in nats per response (arXiv:1909.08593).
    Unset: `kl_coef` is fixed."""

    kl_horizon: int = 10000
    """Responses over which an adapted `kl_coef` changes by at most 20 %. At least `batch_size`."""

    kl_loss_coef: float = 0.0
    """Coefficient of the KL to the reference in the policy loss, independent of `kl_coef`."""

    kl_loss_estimator: KLEstimator = KLEstimator.k2
    """Estimator of the KL in the loss. The gradient of k2 is that of the KL, that of k3 approximates
    it, and that of k1 has mean 0."""

    cliprange: float = 0.2
    """Clip the probability ratio to [1 - cliprange, 1 + cliprange] (arXiv:1707.06347)."""

    cliprange_high: float | None = None
    """Upper bound 1 + cliprange_high instead (arXiv:2503.14476 uses 0.28). Unset: `cliprange`."""

    dual_clip: float | None = None
    """For negative advantages, cap the loss at this ratio (arXiv:1912.09729 uses 3). Unset: no cap."""

    cliprange_value: float | None = 0.2
    """Clip value predictions to this distance from those of the rollout. null: no clipping."""

    entropy_coef: float = 0.0
    """Coefficient of the entropy bonus in the policy loss."""

    early_stop_kl: float | None = None
    """End the updates of a step once the mean `approx_kl` of a minibatch exceeds this, in nats per
    token. Unset: never."""

    gamma: float = 1.0
    """Discount per token."""

    lam: float = 0.95
    """lambda of generalised advantage estimation."""

    reward_clip: float | None = None
    """Clip scores to [-reward_clip, reward_clip] before penalties and KL. Unset: no clipping."""

    whiten_rewards: bool = False
    """Scale the rewards of a step, including the KL penalty, to standard deviation 1 over its tokens.
    The mean is kept."""

    missing_eos_penalty: float = 0.0
    """Penalty for a response that reaches max_new_tokens without EOS (see `missing_eos`)."""

    missing_eos: MissingEOS = MissingEOS.subtract
    """Subtract the penalty from the score, or replace the score by the negative penalty."""

    min_length: int = 0
    """Responses with fewer tokens, EOS included, get `min_length_penalty`."""

    min_length_penalty: float = 0.0
    """Subtracted from the score of a response shorter than `min_length`."""

    length_penalty: float = 0.0
    """Subtracted from the score per token beyond `length_penalty_from`."""

    length_penalty_from: int = 0
    """Tokens of a response, EOS included, without length penalty."""

    repetition_penalty: float = 0.0
    """Subtracted from the score, times the fraction of a response's n-grams that repeat an earlier
    one; n is `repetition_size`."""

    repetition_size: int = 4
    """Tokens per n-gram for the repetition penalty."""

    ema_decay: float | None = None
    """Export a moving average of the policy's weights as well, with this decay per update. Unset:
    none."""

    def __post_init__(self) -> None:
        positive = ("num_steps", "batch_size", "num_epochs", "minibatch_size", "micro_batch_size", "micro_batch_tokens")
        require_at_least(1, "ppo", self, *positive, "kl_horizon", "repetition_size")
        require_at_least(0, "ppo", self, "value_warmup_steps", "min_length", "length_penalty_from")
        penalties = ("missing_eos_penalty", "min_length_penalty", "length_penalty", "repetition_penalty")
        for key in ("kl_coef", "kl_loss_coef", "entropy_coef", *penalties):
            require_finite_range(f"ppo.{key}", getattr(self, key), 0.0, 100.0)
        for key in ("gamma", "lam"):
            require_finite_range(f"ppo.{key}", getattr(self, key), 0.0, 1.0)
        require(0 < self.cliprange < 1, "ppo.cliprange", self.cliprange, "in (0, 1)")
        for key in ("cliprange_high", "cliprange_value", "early_stop_kl", "kl_target", "reward_clip"):
            value = getattr(self, key)
            require(value is None or value > 0, f"ppo.{key}", value, "positive or null")
        require(self.dual_clip is None or self.dual_clip > 1, "ppo.dual_clip", self.dual_clip, "above 1 or null")
        decay = self.ema_decay
        require(decay is None or 0 < decay < 1, "ppo.ema_decay", decay, "in (0, 1) or null")
        self._check_together()

    def _check_together(self) -> None:
        minibatches = f"{self.batch_size / self.minibatch_size:.2f} x minibatch_size {self.minibatch_size}"
        is_multiple = self.batch_size % self.minibatch_size == 0
        got = f"{self.batch_size} = {minibatches}"
        require(is_multiple, "ppo.batch_size", got, "a multiple of ppo.minibatch_size")
        if self.kl_target is not None:
            require(self.kl_horizon >= self.batch_size, "ppo.kl_horizon", self.kl_horizon, "at least ppo.batch_size")
            require(self.kl_coef > 0, "ppo.kl_coef", self.kl_coef, "positive with ppo.kl_target, which adapts it")
        if self.missing_eos is MissingEOS.replace:
            wanted = "positive with ppo.missing_eos=replace, which makes it the score"
            require(self.missing_eos_penalty > 0, "ppo.missing_eos_penalty", 0, wanted)
        both = bool(self.min_length) == bool(self.min_length_penalty)
        require(both, "ppo.min_length_penalty", self.min_length_penalty, "set together with ppo.min_length")
        has_penalty = self.length_penalty > 0 or not self.length_penalty_from
        require(has_penalty, "ppo.length_penalty", 0, "positive with ppo.length_penalty_from")
        warmup = self.value_warmup_steps
        require(warmup < self.num_steps, "ppo.value_warmup_steps", warmup, f"below ppo.num_steps {self.num_steps}")

    def may_reuse_forward(self, weights_are_whole: bool) -> bool:
        """Whether the update may start from the policy's forward pass of scoring, if each rank makes one.

        It may if a step is one minibatch and each rank keeps the policy's full weights until then.
        """
        return self.reuse_forward and self.minibatch_size == self.batch_size and (weights_are_whole or self.gather)

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of a step that `early_stop_kl` does not end early."""
        return self.num_epochs * (self.batch_size // self.minibatch_size)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    path: str | None = None
    """Text file whose language-modelling loss is added to the policy loss (PPO-ptx, arXiv:2203.02155).
    Unset: none."""

    coef: float = 1.0
    """Coefficient of that loss, a mean over tokens."""

    batch_size: int = 8
    """Text blocks per optimizer update over all ranks."""

    micro_batch_size: int = 4
    """Text blocks per forward pass of one rank."""

    max_tokens: int = 512
    """Tokens per block. The text is cut into consecutive blocks, shuffled in each pass."""

    def __post_init__(self) -> None:
        require_finite_range("pretrain.coef", self.coef, 0.0, 100.0)
        require_at_least(1, "pretrain", self, "batch_size", "micro_batch_size")
        require_at_least(2, "pretrain", self, "max_tokens")
