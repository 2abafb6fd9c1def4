"""Every option: a frozen dataclass field with its default, a one-line doc below it, and a range check.

This file is the only place where a default stands; `rlhf COMMAND --help` and docs/config.md are made from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line: what, got, wanted, how to mend. Exit code 2."""


class DType(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class RowPolicy(Enum):
    drop = "drop"  # leave the row out and count it
    error = "error"  # stop before any model is loaded


class ValueInit(Enum):
    reward_model = "reward_model"  # backbone and head of the reward model: V(s) == RM(s) at step 0
    policy = "policy"  # backbone of the policy, fresh head


class Schedule(Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class KLEstimator(Enum):
    k1 = "k1"  # log-ratio: unbiased, can be negative
    k2 = "k2"  # half its square: biased, never negative
    k3 = "k3"  # exp(-k1) - 1 + k1: unbiased, never negative


def _require(ok: bool, key: str, got: object, wanted: str) -> None:
    if not ok:
        raise InputError(f"{key} must be {wanted}, got {got}")


def _require_finite_range(key: str, got: float, low: float, high: float) -> None:
    _require(math.isfinite(got) and low <= got <= high, key, got, f"between {low:g} and {high:g}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str = MISSING
    """Name of the run; its folder is `<output_dir>/<name>`."""

    output_dir: str = "outputs"
    """Folder that holds the run folders."""

    seed: int = 0
    """Seed of everything random: head initialisation, data order, sampling."""

    resume: bool = False
    """Continue the run of this name from its newest checkpoint instead of starting a new one."""

    def __post_init__(self) -> None:
        if self.name != MISSING:
            wanted = "a folder name: not empty, no '/', not '.' or '..'"
            _require(self.name.strip() not in ("", ".", "..") and "/" not in self.name, "run.name", self.name, wanted)
        _require(0 <= self.seed < 2**31, "run.seed", self.seed, "between 0 and 2^31 - 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str | None = None
    """Weights: a Hub id, a local folder, a .gguf file, or `pkg://package/file.gguf` inside an installed package."""

    from_config: dict[str, Any] | None = None
    """Instead of `path`: the keys of a transformers config (`model_type: llama, ...`) for random weights."""

    tokenizer: str | None = None
    """Tokenizer: a Hub id or folder; `bytes` is the built-in byte-level one; unset takes the one beside `path`."""

    revision: str | None = None
    """Branch, tag or commit of a Hub id."""

    dtype: DType = DType.bfloat16
    """Type of weights and activations; with bfloat16 a trained model keeps float32 master weights."""

    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`, ...; unset leaves the choice to transformers."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you trust its author."""

    def check(self, section: str) -> None:
        """Raise InputError unless exactly one source of weights is given; `section` names the place in messages."""
        given = [key for key in ("path", "from_config") if getattr(self, key) is not None]
        _require(
            len(given) == 1, section, f"{' and '.join(given) or 'neither'}", f"given {section}.path or .from_config"
        )
        if self.from_config is not None:
            _require("model_type" in self.from_config, f"{section}.from_config", "none", "given a model_type")
            _require(self.tokenizer is not None, f"{section}.tokenizer", "none", f"set beside {section}.from_config")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: str = MISSING
    """Rows to train on: a .jsonl, .json, .csv or .parquet file, a save_to_disk folder, `pkg://...`, or a Hub id."""

    train_split: str = "train"
    """Split of a Hub id or of a saved DatasetDict to train on."""

    eval: str | None = None
    """Held-out rows, like `train`; unset takes `eval_fraction` of the training rows."""

    eval_split: str = "test"
    """Split of `eval`, where it has splits."""

    eval_fraction: float = 0.05
    """Share of the distinct prompts of `train` to hold out, when `eval` is unset; a prompt is never on both sides."""

    prompt_column: str = "prompt"
    """Column with the prompt: a string, or chat messages (`role`, `content`)."""

    system_prompt: str | None = None
    """System message put before every conversation that does not start with one."""

    apply_chat_template: bool = True
    """Render prompts with the tokenizer's chat template, where it has one; false or none: the plain text."""

    too_long: RowPolicy = RowPolicy.drop
    """What to do with rows over the token limit: nothing is ever cut."""

    empty: RowPolicy = RowPolicy.drop
    """What to do with rows whose prompt or answer is empty."""

    def __post_init__(self) -> None:
        _require_finite_range("data.eval_fraction", self.eval_fraction, 0.0, 0.9)


@dataclass(frozen=True, kw_only=True)
class PreferenceDataConfig(DataConfig):
    chosen_column: str = "chosen"
    """Column with the better answer: a string, or chat messages (with the prompt as common prefix, or without)."""

    rejected_column: str = "rejected"
    """Column with the worse answer, in the form of the better one."""

    max_tokens: int = 1024
    """Longest prompt + answer in tokens."""

    equal: RowPolicy = RowPolicy.drop
    """What to do with rows whose two answers are the same."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        _require(self.max_tokens >= 2, "data.max_tokens", self.max_tokens, "2 or more")


@dataclass(frozen=True, kw_only=True)
class PromptDataConfig(DataConfig):
    max_prompt_tokens: int = 512
    """Longest prompt in tokens, chat template included."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        _require(self.max_prompt_tokens >= 1, "data.max_prompt_tokens", self.max_prompt_tokens, "1 or more")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    learning_rate: float = 1e-5
    """Peak learning rate of AdamW."""

    weight_decay: float = 0.0
    """Decoupled weight decay."""

    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""

    beta2: float = 0.95
    """Decay of AdamW's mean of squared gradients."""

    eps: float = 1e-8
    """Term added to AdamW's denominator."""

    schedule: Schedule = Schedule.cosine
    """Course of the learning rate after the warm-up; linear and cosine fall to 0 at the end of the run."""

    warmup_ratio: float = 0.03
    """Share of all updates over which the learning rate rises linearly from 0 to its peak."""

    max_grad_norm: float = 1.0
    """Global norm to which gradients are clipped; 0 turns clipping off."""

    def check(self, section: str) -> None:
        """Raise InputError for a value out of range; `section` (optim, value_optim) names the place in the message."""
        _require_finite_range(f"{section}.learning_rate", self.learning_rate, 0.0, 1.0)
        _require_finite_range(f"{section}.weight_decay", self.weight_decay, 0.0, 1.0)
        _require(0 <= self.beta1 < 1, f"{section}.beta1", self.beta1, "in [0, 1)")
        _require(0 <= self.beta2 < 1, f"{section}.beta2", self.beta2, "in [0, 1)")
        _require(self.eps > 0, f"{section}.eps", self.eps, "positive")
        _require_finite_range(f"{section}.warmup_ratio", self.warmup_ratio, 0.0, 1.0)
        _require(self.max_grad_norm >= 0, f"{section}.max_grad_norm", self.max_grad_norm, "0 or more")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = 100
    """Save a checkpoint every so many steps; 0 saves none (the final models are exported all the same)."""

    keep_last: int = 2
    """How many checkpoints to keep."""

    def __post_init__(self) -> None:
        _require(self.every_steps >= 0, "checkpoint.every_steps", self.every_steps, "0 or more")
        _require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "1 or more")


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    num_gpus: int = 1
    """Ranks to start on this machine (gloo ranks where there is no GPU); deepspeed or torchrun set their own number."""

    timeout_s: int = 1800
    """Longest wait of one rank for the others in a collective, before all fail with an error."""

    def __post_init__(self) -> None:
        _require(1 <= self.num_gpus <= 64, "launch.num_gpus", self.num_gpus, "between 1 and 64")
        _require(self.timeout_s >= 10, "launch.timeout_s", self.timeout_s, "10 or more")


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
        _require(self.num_epochs >= 1, "train.num_epochs", self.num_epochs, "1 or more")
        _require(self.num_steps is None or self.num_steps >= 1, "train.num_steps", self.num_steps, "1 or more")
        _require(self.micro_batch_size >= 1, "train.micro_batch_size", self.micro_batch_size, "1 or more")
        _require(
            self.eval_micro_batch_size >= 1, "train.eval_micro_batch_size", self.eval_micro_batch_size, "1 or more"
        )
        _require(self.batch_size >= 1, "train.batch_size", self.batch_size, "1 or more")
        _require(self.eval_every_steps >= 0, "train.eval_every_steps", self.eval_every_steps, "0 or more")
        pairs = self.num_calibration_pairs
        _require(pairs >= 2, "train.num_calibration_pairs", pairs, "2 or more")


@dataclass(frozen=True, kw_only=True)
class ValueModelConfig:
    init: ValueInit = ValueInit.reward_model
    """Where the value model starts: the reward model with its head, or the policy's backbone with a fresh head."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    max_new_tokens: int = 128
    """Longest response in tokens, EOS included."""

    temperature: float = 1.0
    """Divides the logits in sampling and in every logprob of policy and reference."""

    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability; below 1 logprobs no longer match the samples."""

    micro_batch_size: int = 16
    """Prompts that one rank generates for at a time."""

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "rollout.max_new_tokens", self.max_new_tokens, "1 or more")
        _require(0 < self.temperature <= 10, "rollout.temperature", self.temperature, "in (0, 10]")
        _require(0 < self.top_p <= 1, "rollout.top_p", self.top_p, "in (0, 1]")
        _require(self.micro_batch_size >= 1, "rollout.micro_batch_size", self.micro_batch_size, "1 or more")


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
            _require(getattr(self, key) >= 1, f"ppo.{key}", getattr(self, key), "1 or more")
        _require_finite_range("ppo.kl_coef", self.kl_coef, 0.0, 100.0)
        _require(0 < self.cliprange < 1, "ppo.cliprange", self.cliprange, "in (0, 1)")
        _require(self.cliprange_value > 0, "ppo.cliprange_value", self.cliprange_value, "positive")
        _require_finite_range("ppo.gamma", self.gamma, 0.0, 1.0)
        _require_finite_range("ppo.lam", self.lam, 0.0, 1.0)
        _require(self.missing_eos_penalty >= 0, "ppo.missing_eos_penalty", self.missing_eos_penalty, "0 or more")
        _require(
            self.batch_size % self.minibatch_size == 0,
            "ppo.batch_size",
            f"{self.batch_size} = {self.batch_size / self.minibatch_size:.2f} x minibatch_size {self.minibatch_size}",
            "a multiple of ppo.minibatch_size",
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    num_prompts: int = 32
    """Held-out prompts answered before and after training, greedily and at the training temperature; 0: none."""

    def __post_init__(self) -> None:
        _require(self.num_prompts >= 0, "eval.num_prompts", self.num_prompts, "0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainRMConfig:
    """`rlhf train-rm`: learn score(chosen) > score(rejected) from preference pairs."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-5))
    train: RewardConfig = field(default_factory=RewardConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Keys of DeepSpeed's own configuration, handed on as they are; batch sizes, dtype and clipping are filled in."""

    def check(self) -> None:
        """Raise InputError where sections do not fit each other (called once the whole is composed)."""
        self.model.check("model")
        self.optim.check("optim")
        _check_deepspeed(self.deepspeed)

    def check_ranks(self, num_ranks: int) -> None:
        """Raise InputError, with the arithmetic, where the batch does not divide by the number of ranks."""
        _check_divides("train.batch_size", self.train.batch_size, num_ranks)


@dataclass(frozen=True, kw_only=True)
class TrainPPOConfig:
    """`rlhf train-ppo`: sample responses, score them, estimate advantages, update policy and value model; repeat."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    reward_model: ModelConfig = field(default_factory=ModelConfig)
    value_model: ValueModelConfig = field(default_factory=ValueModelConfig)
    data: PromptDataConfig = field(default_factory=PromptDataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-6))
    value_optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=5e-6))
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Keys of DeepSpeed's own configuration, handed on as they are; batch sizes, dtype and clipping are filled in."""

    def check(self) -> None:
        """Raise InputError where sections do not fit each other (called once the whole is composed)."""
        self.model.check("model")
        self.reward_model.check("reward_model")
        self.optim.check("optim")
        self.value_optim.check("value_optim")
        _check_deepspeed(self.deepspeed)

    def check_ranks(self, num_ranks: int) -> None:
        """Raise InputError, with the arithmetic, where a batch does not divide by the number of ranks."""
        _check_divides("ppo.batch_size", self.ppo.batch_size, num_ranks)
        _check_divides("ppo.minibatch_size", self.ppo.minibatch_size, num_ranks)


COMMANDS: dict[str, type[TrainRMConfig] | type[TrainPPOConfig]] = {
    "train-rm": TrainRMConfig,
    "train-ppo": TrainPPOConfig,
}

_OWNED_BY_ENGINE = {
    "train_batch_size": "the batch sizes of train. and ppo.",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "micro_batch_size",
    "managed_gradient_accumulation": "micro_batch_size",
    "gradient_clipping": "optim.max_grad_norm",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "optimizer": "optim.",
    "scheduler": "optim.schedule",
}


def _check_deepspeed(deepspeed: dict[str, Any]) -> None:
    for key in deepspeed:
        if key in _OWNED_BY_ENGINE:
            raise InputError(
                f"deepspeed.{key} is filled in from the other options; set {_OWNED_BY_ENGINE[key]} instead"
            )
    zero = deepspeed.get("zero_optimization", {})
    _require(isinstance(zero, dict), "deepspeed.zero_optimization", zero, "a section of keys")
    _require(zero.get("stage", 3) == 3, "deepspeed.zero_optimization.stage", zero.get("stage"), "3")


def _check_divides(key: str, size: int, num_ranks: int) -> None:
    got = f"{size} = {size / num_ranks:.2f} x {num_ranks} ranks"
    _require(
        size % num_ranks == 0,
        key,
        got,
        f"a multiple of the number of ranks, such as {-(-size // num_ranks) * num_ranks}",
    )


def register() -> None:
    """Put every command's schema into Hydra's ConfigStore, as the first entry of its defaults list."""
    for command in COMMANDS:
        name = command.replace("-", "_")
        ConfigStore.instance().store(group="schema", name=name, node=structured(command), package="_global_")


def structured(command: str) -> DictConfig:
    """Return the schema of `command` as a config that YAML and overrides can be merged into.

    OmegaConf marks what comes from a frozen dataclass as read-only; here that mark is lifted.
    """
    cfg: DictConfig = OmegaConf.structured(COMMANDS[command])
    _make_writable(cfg)
    return cfg


def _make_writable(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _make_writable(child)
