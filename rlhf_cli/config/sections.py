"""The sections that both commands share, and those of data, sampling and reporting.

Every option is a frozen dataclass field with its default, a one-line doc below it, and a range check; no default stands
anywhere else. `rlhf COMMAND --help` and docs/config.md are made from these files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, Self

from omegaconf import MISSING

from rlhf_cli.config.data_sources import Format, Source, Sources, check_filter, sources_of
from rlhf_cli.config.errors import require, require_finite_range

DEFAULT_TEMPLATE = "default"  # the name of the chat template for tokenizers without one


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
    """Name of the run; its folder is `<output_dir>/<name>`."""

    output_dir: str = "outputs"
    """Folder that holds the run folders."""

    seed: int = 0
    """Seed of everything random: head initialisation, data order, sampling."""

    resume: bool | str = False
    """Continue the run of this name from its newest checkpoint; or from the one whose folder this names."""

    def __post_init__(self) -> None:
        if self.name != MISSING:
            wanted = "a folder name: not empty, no '/', not '.' or '..'"
            require(self.name.strip() not in ("", ".", "..") and "/" not in self.name, "run.name", self.name, wanted)
        require(self.resume != "", "run.resume", "''", "true, false or the folder of a checkpoint")
        require(0 <= self.seed < 2**31, "run.seed", self.seed, "between 0 and 2^31 - 1")

    @property
    def resumes(self) -> bool:
        """Whether an earlier run is to go on, from its newest checkpoint or from one that is named."""
        return self.resume is not False


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str | None = None
    """Weights: a Hub id, a local folder, a .gguf file, or `pkg://package/file.gguf` inside an installed package."""

    from_config: dict[str, Any] | None = None
    """Instead of `path`: the keys of a transformers config (`model_type: llama, ...`) for random weights."""

    tokenizer: str | None = None
    """Tokenizer: a Hub id or folder; `bytes` is the built-in byte-level one; unset takes the one beside `path`."""

    chat_template: str | None = None
    """Chat template: a Jinja file, or `default` for docs/conversations.md's; unset takes the tokenizer's own."""

    revision: str | None = None
    """Branch, tag or commit of a Hub id."""

    dtype: DType = DType.bfloat16
    """Type of weights and activations; with bfloat16 a trained model keeps float32 master weights."""

    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`, ...; unset leaves the choice to transformers."""

    packing: bool = True
    """Read what texts of a micro-batch begin with alike once, and no padding; false: every text whole. For `sdpa`."""

    compile: bool = False
    """torch.compile every layer: some per cent faster for a minute at the start. One rank without offload only."""

    liger_kernel: bool = False
    """Use Liger's Triton kernels for norms, rotations and MLPs: NVIDIA GPUs only, `pip install 'rlhf[liger]'`."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you trust its author."""

    def check(self, section: str) -> None:
        """Raise InputError unless exactly one source of weights is given; `section` names the place in messages."""
        given = [key for key in ("path", "from_config") if getattr(self, key) is not None]
        wanted = f"given {section}.path or .from_config"
        if len(given) == 2:  # most likely weights for a preset
            group = section if section == "model" else f"model@{section}"
            wanted += f", not both ({group}=pretrained has none of its own)"
        require(len(given) == 1, section, f"{' and '.join(given) or 'neither'}", wanted)
        require(self.chat_template != "", f"{section}.chat_template", "''", "a Jinja file, default, or null")
        if self.from_config is not None:
            require("model_type" in self.from_config, f"{section}.from_config", "none", "given a model_type")
            require(self.tokenizer is not None, f"{section}.tokenizer", "none", f"set beside {section}.from_config")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: Sources = MISSING
    """Rows to train on: a file (.jsonl, .json, also .gz .bz2 .xz .zst; .csv, .parquet), a pattern (`rows/*.jsonl`), a
    save_to_disk folder, `pkg://...` or a Hub id; or a list of these, each `{path, weight, split, filter, format}`."""

    train_split: str = "train"
    """Split of a Hub id or of a saved DatasetDict to train on."""

    train_filter: dict[str, Any] = field(default_factory=dict)
    """Take only rows of `train` with these values: `{split: train, kind: [a, b]}`; a row without the column is bad."""

    eval: Sources | None = None
    """Held-out rows, like `train`; unset takes what fits `eval_filter`, or else `eval_fraction`, of `train`."""

    eval_split: str = "test"
    """Split of `eval`, where it has splits."""

    eval_filter: dict[str, Any] = field(default_factory=dict)
    """Take only rows of `eval` with these values; without `eval`, rows of `train`, whatever its own filter."""

    eval_fraction: float = 0.05
    """Share of the distinct prompts of `train` to hold out, when `eval` is unset; a prompt is never on both sides."""

    format: Format = Format.auto
    """How rows are laid out, see docs/data.md; auto tells it from the first rows."""

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

    cache: bool = True
    """Keep token ids in `$XDG_CACHE_HOME/rlhf` (`~/.cache/rlhf`), and read them there while data and options stay."""

    def __post_init__(self) -> None:
        require_finite_range("data.eval_fraction", self.eval_fraction, 0.0, 0.9)
        check_filter(self.train_filter, "data.train_filter")
        check_filter(self.eval_filter, "data.eval_filter")
        if self.train != MISSING:
            self.train_sources()
        self.eval_sources()

    def train_sources(self) -> list[Source]:
        """Return where the rows to train on come from; raise InputError where `train` says nothing clear."""
        return self._sources(self.train, "data.train", self.train_filter, self.train_split)

    def eval_sources(self) -> list[Source]:
        """Return where the held-out rows come from; none where they are a share of the rows to train on."""
        if self.eval is not None:
            return self._sources(self.eval, "data.eval", self.eval_filter, self.eval_split)
        if not self.eval_filter or self.train == MISSING:
            return []
        return [replace(source, filter=self.eval_filter, weight=1.0) for source in self.train_sources()]

    def of_source(self, source: Source) -> Self:
        """Return the options that hold for the rows of one source."""
        return replace(self, **source.options) if source.options else self

    def _sources(self, value: Sources, key: str, own_filter: dict[str, Any], split: str) -> list[Source]:
        overridable = frozenset(one.name for one in fields(self) if one.name.endswith("_column"))
        found = sources_of(value, key, own_filter, overridable)
        return [source if source.split is not None else replace(source, split=split) for source in found]


@dataclass(frozen=True, kw_only=True)
class PreferenceDataConfig(DataConfig):
    chosen_column: str = "chosen"
    """Column with the better answer: a string, or chat messages (with the prompt as common prefix, or without)."""

    rejected_column: str = "rejected"
    """Column with the worse answer, in the form of the better one."""

    ranking_column: str | None = None
    """Column with a list of two or more answers, the best first, in place of `chosen_column` and `rejected_column`."""

    margin_column: str | None = None
    """Column with a number by which the chosen score should exceed the rejected one (arXiv:2307.09288); unset: 0."""

    confidence_column: str | None = None
    """Column with the probability, in [0.5, 1], that the preference is the right way round; unset: 1."""

    weight_column: str | None = None
    """Column with the weight of a row in the loss, 0 or more; weights are divided by their mean. Unset: all equal."""

    score_column: str | None = None
    """Number that ranks answers: of `rated`, in each completion; of `rated_rows`, in each row. Unset: a usual name."""

    response_column: str = "response"
    """Column, or key of a completion, with the answer, for the formats `rated` and `rated_rows`."""

    category_column: str | None = None
    """Column with a word for the kind of row; the report then shows the accuracy of each kind."""

    max_tokens: int = 1024
    """Longest prompt + answer in tokens."""

    equal: RowPolicy = RowPolicy.drop
    """What to do with rows whose two answers are the same."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        require(self.max_tokens >= 2, "data.max_tokens", self.max_tokens, "2 or more")
        for key in ("margin_column", "confidence_column"):
            value = getattr(self, key)
            alone = self.ranking_column is None or value is None
            require(alone, f"data.{key}", value, "unset with data.ranking_column: it is a number of one pair")
            rated = self.format in (Format.rated, Format.rated_rows) and value is not None
            require(not rated, f"data.{key}", value, f"unset with data.format={self.format.name}: of one pair")


@dataclass(frozen=True, kw_only=True)
class PromptDataConfig(DataConfig):
    max_prompt_tokens: int = 512
    """Longest prompt in tokens, chat template included."""

    def __post_init__(self) -> None:
        DataConfig.__post_init__(self)
        require(self.max_prompt_tokens >= 1, "data.max_prompt_tokens", self.max_prompt_tokens, "1 or more")


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
    """Course of the learning rate after the warm-up; linear and cosine fall to their floor at the last update."""

    min_lr_ratio: float = 0.1
    """Floor of a linear or cosine schedule, as a share of `learning_rate`."""

    warmup_ratio: float = 0.03
    """Share of all updates over which the learning rate rises linearly to its peak."""

    max_grad_norm: float = 1.0
    """Global norm to which gradients are clipped; 0 turns clipping off."""

    state_dtype: DType = DType.float32
    """Type of the updated weights and of AdamW's means; bfloat16 halves them and rounds small updates away."""

    max_skipped_updates: int = 10
    """Stop the run once so many updates in a row were skipped because a gradient was not finite; 0: never."""

    def check(self, section: str) -> None:
        """Raise InputError for a value out of range; `section` (optim, value_optim) names the place in the message."""
        require_finite_range(f"{section}.learning_rate", self.learning_rate, 0.0, 1.0)
        require_finite_range(f"{section}.weight_decay", self.weight_decay, 0.0, 1.0)
        require(0 <= self.beta1 < 1, f"{section}.beta1", self.beta1, "in [0, 1)")
        require(0 <= self.beta2 < 1, f"{section}.beta2", self.beta2, "in [0, 1)")
        require(self.eps > 0, f"{section}.eps", self.eps, "positive")
        require_finite_range(f"{section}.min_lr_ratio", self.min_lr_ratio, 0.0, 1.0)
        require_finite_range(f"{section}.warmup_ratio", self.warmup_ratio, 0.0, 1.0)
        skipped = self.max_skipped_updates
        require(skipped >= 0, f"{section}.max_skipped_updates", skipped, "0 or more")
        require(self.max_grad_norm >= 0, f"{section}.max_grad_norm", self.max_grad_norm, "0 or more")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = 100
    """Save a checkpoint every so many steps; 0 saves none (the final models are exported all the same)."""

    keep_last: int = 2
    """How many checkpoints to keep, beside the best one."""

    best_metric: str | None = None
    """Metric, logged at the step of a checkpoint, that names the best one, which is kept too; unset: none is."""

    best_is_lowest: bool = False
    """The best checkpoint is that with the lowest value of `best_metric`, such as `eval/loss`, not the highest."""

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "checkpoint.every_steps", self.every_steps, "0 or more")
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "1 or more")

    def most_kept(self, num_steps: int | None) -> int:
        """Return the most checkpoints that a run has on the disk at a time, the one that is being written among them.

        num_steps: of the run; None where they are not known yet.
        """
        if self.every_steps == 0:
            return 1  # where a signal ends it
        most = self.keep_last + 1 + (self.best_metric is not None)
        return most if num_steps is None else min(most, num_steps // self.every_steps + 1)


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    num_gpus: int = 1
    """Ranks to start on this machine (gloo ranks where there is no GPU); deepspeed or torchrun set their own number."""

    timeout_s: int = 1800
    """Longest time without progress of any rank, before the run ends with exit code 8 and says where each stood."""

    def __post_init__(self) -> None:
        require(1 <= self.num_gpus <= 64, "launch.num_gpus", self.num_gpus, "between 1 and 64")
        require(self.timeout_s >= 10, "launch.timeout_s", self.timeout_s, "10 or more")


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    max_new_tokens: int = 128
    """Longest response in tokens, EOS included."""

    temperature: float = 1.0
    """Divides the logits in sampling and in every logprob of policy and reference."""

    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability; below 1 logprobs no longer match the samples."""

    micro_batch_size: int = 16
    """Prompts that one rank answers at a time; prompts of like length are answered together."""

    micro_batch_tokens: int | None = None
    """Instead of `micro_batch_size`: as many prompts as fit in so many tokens of key-value cache."""

    gather: bool = True
    """Hold one model's full weights on every rank while it generates or scores; false: fetch layer by layer."""

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "rollout.max_new_tokens", self.max_new_tokens, "1 or more")
        require(0 < self.temperature <= 10, "rollout.temperature", self.temperature, "in (0, 10]")
        require(0 < self.top_p <= 1, "rollout.top_p", self.top_p, "in (0, 1]")
        require(self.micro_batch_size >= 1, "rollout.micro_batch_size", self.micro_batch_size, "1 or more")
        tokens = self.micro_batch_tokens
        require(tokens is None or tokens >= 1, "rollout.micro_batch_tokens", tokens, "1 or more, or null")


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    strict: bool = True
    """Stop with exit code 2 where a check of models, data and sampling fails; false: show it and go on."""

    num_prompts: int = 4
    """Prompts, or rows of preferences, that the checks before the first update look at; 0: no checks."""

    def __post_init__(self) -> None:
        wanted = "2 or more (one has no neighbour to be padded with), or 0"
        require(self.num_prompts == 0 or self.num_prompts >= 2, "check.num_prompts", self.num_prompts, wanted)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    num_prompts: int = 32
    """Held-out prompts answered before and after training, greedily and at the training temperature; 0: none."""

    every_steps: int = 0
    """Answer and score them every so many steps too, against the answers before training; 0: never."""

    def __post_init__(self) -> None:
        require(self.num_prompts >= 0, "eval.num_prompts", self.num_prompts, "0 or more")
        require(self.every_steps >= 0, "eval.every_steps", self.every_steps, "0 or more")
        asks = self.num_prompts > 0 or self.every_steps == 0
        require(asks, "eval.every_steps", self.every_steps, "0 with eval.num_prompts=0: there is nothing to answer")
