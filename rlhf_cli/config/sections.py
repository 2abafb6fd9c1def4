"""The sections shared by both commands, and the sections for data, rollouts and evaluation.

Every option is a frozen dataclass field with its default, a doc string and a range check. Defaults
are defined nowhere else. `rlhf COMMAND --help` and docs/config.md are generated from these files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, Self

from omegaconf import MISSING

from rlhf_cli.config.data_sources import Format, Source, Sources, check_filter, parse_sources
from rlhf_cli.config.errors import require, require_at_least, require_finite_range

DEFAULT_TEMPLATE = "default"  # names the chat template for tokenizers without one


class DType(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class RowPolicy(Enum):
    drop = "drop"  # leave the row out and count it
    error = "error"  # stop before any model is loaded


class Schedule(Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str = MISSING
    """Name of the run. Its folder is `<output_dir>/<name>`."""

    output_dir: str = "outputs"
    """Folder that contains the run folders."""

    seed: int = 0
    """Seed for head initialisation, data order and sampling."""

    resume: bool | str = False
    """`true` resumes this run from its newest checkpoint; a checkpoint folder resumes from there."""

    def __post_init__(self) -> None:
        if self.name != MISSING:
            is_folder_name = self.name.strip() not in ("", ".", "..") and "/" not in self.name
            require(is_folder_name, "run.name", self.name, "a folder name: not empty, '.' or '..', and without '/'")
        require(self.resume != "", "run.resume", "''", "true, false or a checkpoint folder")
        require(0 <= self.seed < 2**31, "run.seed", self.seed, "between 0 and 2^31 - 1")

    @property
    def resumes(self) -> bool:
        """Whether to resume an earlier run."""
        return self.resume is not False


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str | None = None
    """Weights: a Hub id, a folder, a .gguf file, or `pkg://package/file.gguf` (installed package)."""

    from_config: dict[str, Any] | None = None
    """Random weights instead of `path`: keys of a transformers config (`model_type: llama, ...`)."""

    tokenizer: str | None = None
    """A Hub id, a folder, or `bytes` for the built-in byte tokenizer. Unset: the one at `path`."""

    chat_template: str | None = None
    """A Jinja file, or `default` (see docs/conversations.md). Unset: the tokenizer's own template."""

    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""

    dtype: DType = DType.bfloat16
    """Type of weights and activations. Training in bfloat16 keeps float32 master weights."""

    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`, ... Unset: transformers chooses."""

    packing: bool = True
    """Pack the sequences of a micro-batch: a shared prefix is computed once and no padding is
    processed. Takes effect with `sdpa` attention."""

    compile: bool = False
    """Run every layer through torch.compile: a few percent faster, a minute longer to start. Only
    for one rank without offload."""

    liger_kernel: bool = False
    """Use Liger's Triton kernels for norms, rotary embeddings and MLPs. Needs an NVIDIA GPU and
    `pip install 'rlhf[liger]'`."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass. Saves memory; takes about a third more time."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Enable this only if you trust its author."""

    def check(self, section: str) -> None:
        """Raise InputError unless exactly one source of weights is set, with what it needs.

        section: the name of this section in messages.
        """
        given = [key for key in ("path", "from_config") if getattr(self, key) is not None]
        fix = ""
        if len(given) == 2:  # most likely weights for a preset
            group = section if section == "model" else f"model@{section}"
            fix = f" (to replace a preset's from_config by weights, add {group}=pretrained)"
        wanted = f"set by either {section}.path or {section}.from_config{fix}"
        require(len(given) == 1, section, " and ".join(given) or "neither", wanted)
        require(self.chat_template != "", f"{section}.chat_template", "''", "a Jinja file, default or null")
        if self.from_config is not None:
            require("model_type" in self.from_config, f"{section}.from_config.model_type", "none", "set")
            wanted = f"set with {section}.from_config: a Hub id, a folder or bytes"
            require(self.tokenizer is not None, f"{section}.tokenizer", "none", wanted)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: Sources = MISSING
    """Training rows: a file, a pattern (`rows/*.jsonl`), a save_to_disk folder, `pkg://...` or a Hub
    id; or a list of `{path, weight, split, filter, format}`. File types: see docs/data.md."""

    train_split: str = "train"
    """Training split of a Hub dataset or a saved DatasetDict."""

    train_filter: dict[str, Any] = field(default_factory=dict)
    """Use only training rows with these values: `{split: train, kind: [a, b]}`. A row without the
    column counts as a bad row."""

    eval: Sources | None = None
    """Held-out rows, in the form of `train`. Unset: the training rows that match `eval_filter`, or
    without a filter `eval_fraction` of them."""

    eval_split: str = "test"
    """Split of `eval`, if it has splits."""

    eval_filter: dict[str, Any] = field(default_factory=dict)
    """Use only held-out rows with these values. If `eval` is unset, it selects from `train` and
    ignores `train_filter`."""

    eval_fraction: float = 0.05
    """Fraction of the distinct training prompts to hold out when `eval` is unset. No prompt is on
    both sides."""

    format: Format = Format.auto
    """Layout of the rows (see docs/data.md). `auto` detects it from the first rows."""

    prompt_column: str = "prompt"
    """Column with the prompt: a string, or chat messages (`role`, `content`)."""

    system_prompt: str | None = None
    """System message for every conversation that does not start with one."""

    apply_chat_template: bool = True
    """Render prompts with the tokenizer's chat template, if it has one. `false`: plain text."""

    too_long: RowPolicy = RowPolicy.drop
    """Drop rows that exceed the token limit, or stop with an error. Rows are never truncated."""

    empty: RowPolicy = RowPolicy.drop
    """Drop rows with an empty prompt or response, or stop with an error."""

    cache: bool = True
    """Cache token ids in `$XDG_CACHE_HOME/rlhf` (default `~/.cache/rlhf`) and reuse them while data
    and options are unchanged."""

    def __post_init__(self) -> None:
        require_finite_range("data.eval_fraction", self.eval_fraction, 0.0, 0.9)
        check_filter(self.train_filter, "data.train_filter")
        check_filter(self.eval_filter, "data.eval_filter")
        if self.train != MISSING:
            self.train_sources()
        self.eval_sources()

    def train_sources(self) -> list[Source]:
        """Return the sources of the training rows; raise InputError if `train` is malformed."""
        return self._sources(self.train, "data.train", self.train_filter, self.train_split)

    def eval_sources(self) -> list[Source]:
        """Return the sources of the held-out rows; none if they are a fraction of `train`."""
        if self.eval is not None:
            return self._sources(self.eval, "data.eval", self.eval_filter, self.eval_split)
        if not self.eval_filter or self.train == MISSING:
            return []
        return [replace(source, filter=self.eval_filter, weight=1.0) for source in self.train_sources()]

    def of_source(self, source: Source) -> Self:
        """Return these options with the overrides of one source."""
        return replace(self, **source.options) if source.options else self

    def _sources(self, value: Sources, key: str, own_filter: dict[str, Any], split: str) -> list[Source]:
        overridable = frozenset(one.name for one in fields(self) if one.name.endswith("_column"))
        found = parse_sources(value, key, own_filter, overridable)
        return [source if source.split is not None else replace(source, split=split) for source in found]


@dataclass(frozen=True, kw_only=True)
class PreferenceDataConfig(DataConfig):
    chosen_column: str = "chosen"
    """Column with the preferred response: a string, or chat messages, with or without the prompt."""

    rejected_column: str = "rejected"
    """Column with the other response, in the form of the preferred one."""

    ranking_column: str | None = None
    """Column with two or more responses, best first. Replaces `chosen_column` and `rejected_column`."""

    margin_column: str | None = None
    """Column with the margin by which the chosen score should exceed the rejected one
    (arXiv:2307.09288). Unset: 0."""

    confidence_column: str | None = None
    """Column with the probability, 0.5 to 1, that the preference is correct. Unset: 1."""

    weight_column: str | None = None
    """Column with the weight of a row in the loss, 0 or more; weights are divided by their mean.
    Unset: equal weights."""

    score_column: str | None = None
    """Column (`rated_rows`) or key of a completion (`rated`) with the number that ranks responses.
    Unset: one of the usual names."""

    response_column: str = "response"
    """Column (`rated_rows`) or key of a completion (`rated`) with the response."""

    category_column: str | None = None
    """Column with a category. The report then shows the accuracy per category."""

    max_tokens: int = 1024
    """Maximum tokens of prompt and response together."""

    equal: RowPolicy = RowPolicy.drop
    """Drop rows whose two responses are identical, or stop with an error."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        require_at_least(2, "data", self, "max_tokens")
        for key in ("margin_column", "confidence_column"):
            if (value := getattr(self, key)) is not None:
                wanted = "unset with data.ranking_column: it belongs to one pair"
                require(self.ranking_column is None, f"data.{key}", value, wanted)
                wanted = f"unset with data.format={self.format.name}: it belongs to one pair"
                require(self.format not in (Format.rated, Format.rated_rows), f"data.{key}", value, wanted)


@dataclass(frozen=True, kw_only=True)
class PromptDataConfig(DataConfig):
    max_prompt_tokens: int = 512
    """Maximum tokens of a prompt, chat template included."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        require_at_least(1, "data", self, "max_prompt_tokens")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    learning_rate: float = 1e-5
    """Peak learning rate of AdamW."""

    weight_decay: float = 0.0
    """Decoupled weight decay."""

    beta1: float = 0.9
    """Decay rate of AdamW's first moment."""

    beta2: float = 0.95
    """Decay rate of AdamW's second moment."""

    eps: float = 1e-8
    """Term added to AdamW's denominator."""

    schedule: Schedule = Schedule.cosine
    """Learning rate after the warm-up. `linear` and `cosine` reach their floor at the last update."""

    min_lr_ratio: float = 0.1
    """Floor of the linear and cosine schedules, as a fraction of `learning_rate`."""

    warmup_ratio: float = 0.03
    """Fraction of all updates in which the learning rate rises linearly to its peak."""

    max_grad_norm: float = 1.0
    """Clip gradients to this global norm; 0 disables clipping."""

    state_dtype: DType = DType.float32
    """Type of the updated weights and AdamW's moments. `bfloat16` halves their memory but rounds
    small updates away."""

    max_skipped_updates: int = 10
    """Stop the run after this many consecutive updates with non-finite gradients; 0 disables."""

    def check(self, section: str) -> None:
        """Raise InputError for a value out of range.

        section: the name of this section in messages (optim, value_optim).
        """
        for key in ("learning_rate", "weight_decay", "min_lr_ratio", "warmup_ratio"):
            require_finite_range(f"{section}.{key}", getattr(self, key), 0.0, 1.0)
        for key in ("beta1", "beta2"):
            require(0 <= getattr(self, key) < 1, f"{section}.{key}", getattr(self, key), "in [0, 1)")
        require(self.eps > 0, f"{section}.eps", self.eps, "positive")
        require_at_least(0, section, self, "max_skipped_updates", "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = 100
    """Save a checkpoint every this many steps. 0 saves none; the final models are exported anyway."""

    keep_last: int = 2
    """Number of checkpoints to keep, in addition to the best one."""

    best_metric: str | None = None
    """Metric that determines the best checkpoint, which is then kept as well. It must be logged at
    the steps of checkpoints."""

    best_is_lowest: bool = False
    """The lowest value of `best_metric` is the best, as for `eval/loss`."""

    def __post_init__(self) -> None:
        require_at_least(0, "checkpoint", self, "every_steps")
        require_at_least(1, "checkpoint", self, "keep_last")

    def most_kept(self, num_steps: int | None) -> int:
        """Return the most checkpoints on disk at a time, including the one being written.

        num_steps: of the run; None if not yet known.
        """
        if self.every_steps == 0:
            return 1  # saved when a signal ends the run
        most = self.keep_last + 1 + (self.best_metric is not None)
        return most if num_steps is None else min(most, num_steps // self.every_steps + 1)


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    num_gpus: int = 1
    """Ranks to start on this machine, one per GPU; without GPUs they use gloo. The deepspeed and
    torchrun launchers set their own number."""

    timeout_s: int = 1800
    """Seconds without progress on a rank after which the run ends with exit code 8 and shows where
    each rank was."""

    def __post_init__(self) -> None:
        require(1 <= self.num_gpus <= 64, "launch.num_gpus", self.num_gpus, "between 1 and 64")
        require_at_least(10, "launch", self, "timeout_s")


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    max_new_tokens: int = 128
    """Maximum tokens of a response, EOS included."""

    temperature: float = 1.0
    """Divides the logits in sampling and in all logprobs of the policy and the reference."""

    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability. Below 1, logprobs no longer match
    the sampling distribution."""

    micro_batch_size: int = 16
    """Prompts per generation batch of one rank. Prompts of similar length are batched together."""

    micro_batch_tokens: int | None = None
    """Replaces `micro_batch_size`: batch as many prompts as fit in this many key-value cache tokens."""

    gather: bool = True
    """ZeRO-3: gather a model's full weights once for generation or scoring. `false`: fetch them layer
    by layer."""

    def __post_init__(self) -> None:
        require_at_least(1, "rollout", self, "max_new_tokens", "micro_batch_size", "micro_batch_tokens")
        require(0 < self.temperature <= 10, "rollout.temperature", self.temperature, "in (0, 10]")
        require(0 < self.top_p <= 1, "rollout.top_p", self.top_p, "in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    strict: bool = True
    """Stop with exit code 2 if a check of models, data or sampling fails. `false`: show it and
    continue."""

    num_prompts: int = 4
    """Prompts or preference rows used by the checks before the first update; 0 disables the checks."""

    def __post_init__(self) -> None:
        wanted = "0, or 2 or more: the padding check needs two prompts"
        require(self.num_prompts == 0 or self.num_prompts >= 2, "check.num_prompts", self.num_prompts, wanted)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    num_prompts: int = 32
    """Held-out prompts to answer before and after training, both greedily and at the training
    temperature; 0 disables evaluation."""

    every_steps: int = 0
    """Also evaluate every this many steps, against the responses from before training; 0: never."""

    def __post_init__(self) -> None:
        require_at_least(0, "eval", self, "num_prompts", "every_steps")
        consistent = self.num_prompts > 0 or self.every_steps == 0
        require(consistent, "eval.every_steps", self.every_steps, "0 if eval.num_prompts is 0")
