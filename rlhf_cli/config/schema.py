"""The options of the training commands: their sections, and checks across sections."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from rlhf_cli.config.errors import InputError, require
from rlhf_cli.config.guard_options import GuardConfig, PPOGuardConfig
from rlhf_cli.config.objectives import PPOConfig, PretrainConfig, RewardConfig, ValueInit, ValueModelConfig
from rlhf_cli.config.plan_options import PlanConfig
from rlhf_cli.config.report_options import ReportConfig
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.config.sections import (
    CheckConfig,
    CheckpointConfig,
    DType,
    EvalConfig,
    LaunchConfig,
    ModelConfig,
    OptimConfig,
    PreferenceDataConfig,
    PromptDataConfig,
    RolloutConfig,
    RunConfig,
)
from rlhf_cli.config.zero_settings import ZeroSettings, with_weights_on_host

# Options with a new name: the old name is an error that gives the new one.
RENAMED = {
    "ppo.target_kl": "ppo.early_stop_kl",
    "plan.context": "plan.gpu_overhead",
}


@dataclass(frozen=True, kw_only=True)
class TrainRMConfig:
    """Train a reward model on preferences, so that score(chosen) > score(rejected)."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-5))
    train: RewardConfig = field(default_factory=RewardConfig)
    check: CheckConfig = field(default_factory=CheckConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Options passed to DeepSpeed unchanged. Batch sizes, dtype and clipping are filled in."""

    def check_together(self) -> None:
        """Raise InputError for sections that contradict each other."""
        self.model.check("model")
        self.optim.check("optim")
        _check_deepspeed(self.deepspeed)
        _check_state_dtype("optim", self.optim, self.model, self.deepspeed)
        _check_best(self.checkpoint, RM_METRICS, "train.eval_every_steps", self.train.eval_every_steps)
        if self.data.confidence_column is not None:
            smoothing = self.train.label_smoothing
            require(smoothing == 0, "train.label_smoothing", smoothing, "0 with data.confidence_column")

    def check_ranks(self, num_ranks: int) -> None:
        """Raise InputError for options that do not fit the number of ranks."""
        _check_compile("model", self.model, num_ranks, self.deepspeed)
        _check_divides("train.batch_size", self.train.batch_size, num_ranks)


@dataclass(frozen=True, kw_only=True)
class TrainPPOConfig:
    """Train a policy with PPO: generate responses, score them, estimate advantages, update; repeat."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    reward_model: ModelConfig = field(default_factory=ModelConfig)
    reward: list[RewardSourceConfig] = field(default_factory=list)
    """Weighted list of reward sources, each with the options below. Empty: only `reward_model`."""

    value_model: ValueModelConfig = field(default_factory=ValueModelConfig)
    gold_reward_model: ModelConfig = field(default_factory=ModelConfig)
    """Second reward model, used only in evaluation and never in training. Unset: none."""

    data: PromptDataConfig = field(default_factory=PromptDataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-6))
    value_optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=5e-6))
    eval: EvalConfig = field(default_factory=EvalConfig)
    check: CheckConfig = field(default_factory=CheckConfig)
    guard: PPOGuardConfig = field(default_factory=PPOGuardConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Options passed to DeepSpeed unchanged. Batch sizes, dtype and clipping are filled in."""

    @property
    def has_gold(self) -> bool:
        """Whether a second reward model scores the evaluations."""
        return _is_given(self.gold_reward_model)

    @property
    def sources(self) -> list[RewardSourceConfig]:
        """The reward sources, in order; at least one."""
        return self.reward or [RewardSourceConfig(name="reward_model")]

    @property
    def has_reward_model(self) -> bool:
        """Whether one source is the model of the section `reward_model`."""
        return any(source.is_reward_model for source in self.sources)

    @property
    def deepspeed_of_frozen(self) -> dict[str, Any]:
        """DeepSpeed's options for models that are not trained."""
        return with_weights_on_host(self.deepspeed) if self.ppo.offload_frozen else self.deepspeed

    def check_together(self) -> None:
        """Raise InputError for sections that contradict each other."""
        self.model.check("model")
        self._check_sources()
        if self.gold_reward_model != ModelConfig():
            self.gold_reward_model.check("gold_reward_model")
        self.optim.check("optim")
        self.value_optim.check("value_optim")
        values_start_from = self.reward_model if self.value_model.init is ValueInit.reward_model else self.model
        _check_deepspeed(self.deepspeed)
        _check_state_dtype("optim", self.optim, self.model, self.deepspeed)
        _check_state_dtype("value_optim", self.value_optim, values_start_from, self.deepspeed)
        _check_best(self.checkpoint, PPO_METRICS, "eval.every_steps", self.eval.every_steps)
        best = self.checkpoint.best_metric
        is_logged = self.has_gold or "gold_" not in (best or "")
        require(is_logged, "checkpoint.best_metric", best, "another metric unless gold_reward_model.path is set")
        self.guard.check(self.ppo)
        shortest, longest = self.ppo.min_length, self.rollout.max_new_tokens
        require(shortest <= longest, "ppo.min_length", shortest, f"at most rollout.max_new_tokens {longest}")

    def _check_sources(self) -> None:
        for index, source in enumerate(self.reward):
            source.check(f"reward[{index}]")
            longest, limit = source.longest_s, self.launch.timeout_s
            wanted = f"above {longest:.0f}, the longest time for a batch of reward[{index}] (timeout_s, retries)"
            require(not source.is_external or longest < limit, "launch.timeout_s", limit, wanted)
        names = [source.name for source in self.sources]
        twice = next((name for name in names if names.count(name) > 1), None)
        require(twice is None, "reward", f"{twice} twice", "a list of sources with different names")
        num_models = sum(source.is_reward_model for source in self.sources)
        wanted = "a list with at most one source without model, function and url, which is reward_model"
        require(num_models <= 1, "reward", num_models, wanted)
        if self.has_reward_model:
            self.reward_model.check("reward_model")
            return
        from_policy = self.value_model.init is ValueInit.policy
        wanted = "policy if no source of reward is reward_model"
        require(from_policy, "value_model.init", self.value_model.init.value, wanted)
        unused = "unset, or used: add {name: rm} to reward"
        require(not _is_given(self.reward_model), "reward_model", "a model that no source uses", unused)

    def check_ranks(self, num_ranks: int) -> None:
        """Raise InputError for options that do not fit the number of ranks."""
        models = {"model": self.model, "reward_model": self.reward_model, "gold_reward_model": self.gold_reward_model}
        own = {f"reward[{index}].model": one.own_model(f"reward[{index}]") for index, one in enumerate(self.reward)}
        models |= {key: model for key, model in own.items() if model is not None}
        for key, model in models.items():
            _check_compile(key, model, num_ranks, self.deepspeed_of_frozen)
        _check_divides("ppo.batch_size", self.ppo.batch_size, num_ranks)
        _check_divides("ppo.minibatch_size", self.ppo.minibatch_size, num_ranks)
        if self.pretrain.path is not None:
            _check_divides("pretrain.batch_size", self.pretrain.batch_size, num_ranks)


COMMANDS: dict[str, type[TrainRMConfig] | type[TrainPPOConfig]] = {
    "train-rm": TrainRMConfig,
    "train-ppo": TrainPPOConfig,
}

# Metrics that can determine the best checkpoint; docs/metrics.md has their formulas.
RM_METRICS = ("eval/accuracy", "eval/loss", "eval/margin", "accuracy", "loss", "margin")
PPO_METRICS = (
    *("score", "reward", "kl", "return", "entropy", "eos_rate", "response_length", "loss/value"),
    *("eval/score", "eval/win_rate", "eval/greedy_score", "eval/greedy_win_rate"),
    *("eval/gold_score", "eval/gold_win_rate", "eval/greedy_gold_score", "eval/greedy_gold_win_rate"),
)


def _is_given(model: ModelConfig) -> bool:
    return model.path is not None or model.from_config is not None


_FILLED_IN = {  # DeepSpeed's key -> the option that determines it
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "micro_batch_size",
    "managed_gradient_accumulation": "micro_batch_size",
    "gradient_clipping": "optim.max_grad_norm",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "optimizer": "the options of optim",
    "scheduler": "optim.schedule",
}


def _check_deepspeed(deepspeed: dict[str, Any]) -> None:
    for key in deepspeed:
        if key in _FILLED_IN:
            raise InputError(f"deepspeed.{key} cannot be set: it follows from other options; set {_FILLED_IN[key]}")
    zero = deepspeed.get("zero_optimization", {})
    require(isinstance(zero, dict), "deepspeed.zero_optimization", zero, "a mapping")
    require(zero.get("stage", 3) == 3, "deepspeed.zero_optimization.stage", zero.get("stage"), "3")
    for key in ("offload_optimizer", "offload_param"):
        section = zero.get(key) or {}
        require(isinstance(section, dict), f"deepspeed.zero_optimization.{key}", section, "a mapping: {device: cpu}")
        device = section.get("device", "none")
        wanted = "cpu or none: checkpoints do not support nvme"
        require(device in ("none", "cpu"), f"deepspeed.zero_optimization.{key}.device", device, wanted)
    ratio = (zero.get("offload_optimizer") or {}).get("ratio", 1.0)
    wanted = "1.0: checkpoints do not support partial offload"
    require(ratio == 1, "deepspeed.zero_optimization.offload_optimizer.ratio", ratio, wanted)


def _check_state_dtype(section: str, optim: OptimConfig, model: ModelConfig, deepspeed: dict[str, Any]) -> None:
    if optim.state_dtype is not DType.float32:
        key, got = f"{section}.state_dtype", optim.state_dtype.value
        require(model.dtype is DType.bfloat16, key, got, "float32 for a model in float32")
        require(not ZeroSettings.of(deepspeed).offload_optimizer, key, got, "float32 with offload_optimizer")


def _check_compile(section: str, model: ModelConfig, num_ranks: int, deepspeed: dict[str, Any]) -> None:
    """Raise InputError for compiled layers whose weights ZeRO-3 gathers."""
    stays = num_ranks == 1 and not ZeroSettings.of(deepspeed).offloads
    require(stays or not model.compile, f"{section}.compile", True, "false with several ranks or offload")


def _check_best(checkpoint: CheckpointConfig, metrics: tuple[str, ...], eval_key: str, eval_every: int) -> None:
    """Raise InputError unless the metric of the best checkpoint is measured at every checkpoint."""
    best = checkpoint.best_metric
    require(best is None or best in metrics, "checkpoint.best_metric", best, f"one of {', '.join(metrics)}")
    if (best or "").startswith("eval/"):
        every = checkpoint.every_steps
        is_measured = eval_every > 0 and every % eval_every == 0
        wanted = f"a multiple of {eval_key}, which is {eval_every} and must not be 0, for {best}"
        require(is_measured, "checkpoint.every_steps", every, wanted)


def _check_divides(key: str, size: int, num_ranks: int) -> None:
    got = f"{size} = {size / num_ranks:.2f} x {num_ranks} ranks"
    wanted = f"a multiple of the number of ranks, such as {-(-size // num_ranks) * num_ranks}"
    require(size % num_ranks == 0, key, got, wanted)


@cache
def register() -> None:
    """Store every command's schema in Hydra's ConfigStore, for the defaults lists in conf/."""
    for command in COMMANDS:
        name = command.replace("-", "_")
        ConfigStore.instance().store(group="schema", name=name, node=structured(command), package="_global_")


def structured(command: str) -> DictConfig:
    """Return the schema of `command` as a config into which YAML and overrides can be merged.

    OmegaConf marks configs of frozen dataclasses as read-only; this removes the mark.
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
