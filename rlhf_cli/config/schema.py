"""The two commands: their sections, what must fit together, and how Hydra and OmegaConf get to know them."""

from __future__ import annotations

from dataclasses import dataclass, field
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


@dataclass(frozen=True, kw_only=True)
class TrainRMConfig:
    """`rlhf train-rm`: learn score(chosen) > score(rejected) from preference pairs."""

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
    """Keys of DeepSpeed's own configuration, handed on as they are; batch sizes, dtype and clipping are filled in."""

    def check_together(self) -> None:
        """Raise InputError where sections do not fit each other (called once the whole is composed)."""
        self.model.check("model")
        self.optim.check("optim")
        _check_deepspeed(self.deepspeed)
        _check_state_dtype("optim", self.optim, self.model, self.deepspeed)
        _check_best(self.checkpoint, RM_METRICS)
        _check_evaluated(self.checkpoint, "train.eval_every_steps", self.train.eval_every_steps)
        twice = self.train.label_smoothing > 0 and self.data.confidence_column is not None
        require(not twice, "train.label_smoothing", self.train.label_smoothing, "0 with data.confidence_column")

    def check_ranks(self, num_ranks: int) -> None:
        """Raise InputError where options do not fit the number of ranks, with the arithmetic of a batch."""
        _check_compile("model", self.model, num_ranks, self.deepspeed)
        _check_divides("train.batch_size", self.train.batch_size, num_ranks)


@dataclass(frozen=True, kw_only=True)
class TrainPPOConfig:
    """`rlhf train-ppo`: sample responses, score them, estimate advantages, update policy and value model; repeat."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    reward_model: ModelConfig = field(default_factory=ModelConfig)
    reward: list[RewardSourceConfig] = field(default_factory=list)
    """What scores a response: a weighted list of sources, each with the options below; empty: `reward_model` alone."""

    value_model: ValueModelConfig = field(default_factory=ValueModelConfig)
    gold_reward_model: ModelConfig = field(default_factory=ModelConfig)
    """A second reward model that scores the evaluations alone; training never sees it. Unset: none."""

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
    """Keys of DeepSpeed's own configuration, handed on as they are; batch sizes, dtype and clipping are filled in."""

    @property
    def has_gold(self) -> bool:
        """Whether there is a second reward model for the evaluations."""
        return _is_given(self.gold_reward_model)

    @property
    def sources(self) -> list[RewardSourceConfig]:
        """What scores a response, in order; one source at least."""
        return self.reward or [RewardSourceConfig(name="reward_model")]

    @property
    def has_reward_model(self) -> bool:
        """Whether the model of the section `reward_model` is one of the sources."""
        return any(source.is_reward_model for source in self.sources)

    @property
    def deepspeed_of_frozen(self) -> dict[str, Any]:
        """What is handed to DeepSpeed for the models that are not trained."""
        return with_weights_on_host(self.deepspeed) if self.ppo.offload_frozen else self.deepspeed

    def check_together(self) -> None:
        """Raise InputError where sections do not fit each other (called once the whole is composed)."""
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
        _check_best(self.checkpoint, PPO_METRICS)
        _check_evaluated(self.checkpoint, "eval.every_steps", self.eval.every_steps)
        best = self.checkpoint.best_metric
        is_logged = self.has_gold or "gold_" not in (best or "")
        require(is_logged, "checkpoint.best_metric", best, "logged: set gold_reward_model.path")
        self.guard.check(self.ppo)
        shortest, longest = self.ppo.min_length, self.rollout.max_new_tokens
        require(shortest <= longest, "ppo.min_length", shortest, f"at most rollout.max_new_tokens {longest}")

    def _check_sources(self) -> None:
        for place, source in enumerate(self.reward):
            source.check(f"reward[{place}]")
            longest, limit = source.longest_s, self.launch.timeout_s
            wanted = f"over {longest:.0f}, which a batch of reward[{place}] may take (timeout_s, retries)"
            require(not source.is_outside or longest < limit, "launch.timeout_s", limit, wanted)
        names = [source.name for source in self.sources]
        twice = next((name for name in names if names.count(name) > 1), None)
        require(twice is None, "reward", f"two of the name {twice}", "a list of sources with different names")
        num_models = sum(source.is_reward_model for source in self.sources)
        wanted = "a list in which one source at most has neither model, function nor url: it is reward_model"
        require(num_models <= 1, "reward", num_models, wanted)
        if self.has_reward_model:
            self.reward_model.check("reward_model")
            return
        starts = "policy where no source is the reward_model: there is none to start from"
        from_policy = self.value_model.init is ValueInit.policy
        require(from_policy, "value_model.init", self.value_model.init.value, starts)
        unused = "unset where no source of reward is it; a source {name: rm} without model, function and url is"
        require(not _is_given(self.reward_model), "reward_model", "given", unused)

    def check_ranks(self, num_ranks: int) -> None:
        """Raise InputError where options do not fit the number of ranks, with the arithmetic of a batch."""
        models = {"model": self.model, "reward_model": self.reward_model, "gold_reward_model": self.gold_reward_model}
        own = {f"reward[{place}].model": one.own_model(f"reward[{place}]") for place, one in enumerate(self.reward)}
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

# What can name the best checkpoint; docs/metrics.md has their formulas.
RM_METRICS = ("eval/accuracy", "eval/loss", "eval/margin", "accuracy", "loss", "margin")
PPO_METRICS = (
    *("score", "reward", "kl", "return", "entropy", "eos_rate", "response_length", "loss/value"),
    *("eval/score", "eval/win_rate", "eval/greedy_score", "eval/greedy_win_rate"),
    *("eval/gold_score", "eval/gold_win_rate", "eval/greedy_gold_score", "eval/greedy_gold_win_rate"),
)


def _is_given(model: ModelConfig) -> bool:
    return model.path is not None or model.from_config is not None


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
    require(isinstance(zero, dict), "deepspeed.zero_optimization", zero, "a section of keys")
    require(zero.get("stage", 3) == 3, "deepspeed.zero_optimization.stage", zero.get("stage"), "3")
    for key in ("offload_optimizer", "offload_param"):
        section = zero.get(key) or {}
        require(isinstance(section, dict), f"deepspeed.zero_optimization.{key}", section, "a section: {device: cpu}")
        device = section.get("device", "none")
        known = device in ("none", "cpu")
        require(known, f"deepspeed.zero_optimization.{key}.device", device, "cpu or none: checkpoints read no nvme")
    ratio = (zero.get("offload_optimizer") or {}).get("ratio", 1.0)
    whole = "1.0: checkpoints read no optimizer that is in two places"
    require(ratio == 1, "deepspeed.zero_optimization.offload_optimizer.ratio", ratio, whole)


def _check_state_dtype(section: str, optim: OptimConfig, model: ModelConfig, deepspeed: dict[str, Any]) -> None:
    fits = optim.state_dtype is DType.float32 or model.dtype is DType.bfloat16
    require(fits, f"{section}.state_dtype", optim.state_dtype.value, "float32 for a model in float32")
    alone = optim.state_dtype is DType.float32 or not ZeroSettings.of(deepspeed).offload_optimizer
    require(alone, f"{section}.state_dtype", optim.state_dtype.value, "float32 with offload_optimizer")


def _check_compile(section: str, model: ModelConfig, num_ranks: int, deepspeed: dict[str, Any]) -> None:
    """Raise InputError where layers are to be compiled around which ZeRO-3 gathers weights."""
    alone = num_ranks == 1 and not ZeroSettings.of(deepspeed).offloads
    require(alone or not model.compile, f"{section}.compile", True, "false with several ranks or offload")


def _check_best(checkpoint: CheckpointConfig, metrics: tuple[str, ...]) -> None:
    best = checkpoint.best_metric
    require(best is None or best in metrics, "checkpoint.best_metric", best, f"one of {', '.join(metrics)}")


def _check_evaluated(checkpoint: CheckpointConfig, key: str, evaluates: int) -> None:
    """Raise InputError where the metric that names the best checkpoint is not measured at every checkpoint."""
    if (checkpoint.best_metric or "").startswith("eval/"):
        every = checkpoint.every_steps
        fits = evaluates > 0 and every % evaluates == 0
        require(fits, "checkpoint.every_steps", every, f"a multiple of {key} {evaluates}, over 0")


def _check_divides(key: str, size: int, num_ranks: int) -> None:
    got = f"{size} = {size / num_ranks:.2f} x {num_ranks} ranks"
    require(
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
