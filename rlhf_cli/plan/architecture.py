"""The models of a run, built on the meta device: shapes without weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import ModelConfig
from rlhf_cli.models.heads import Float32Head, PairScorer, ResponseLM, TokenScorer
from rlhf_cli.models.load_models import load_config, switch_dropout_off, torch_dtype
from rlhf_cli.models.packed_forward import use_packing
from rlhf_cli.system.text import one_line


@dataclass(frozen=True)
class Architecture:
    """The shape of a model and how it runs. Hashable: it is the key of all cached traces."""

    config: PreTrainedConfig = field(compare=False)  # shared: do not change it
    scores: bool  # a classifier with one label; otherwise a causal language model
    dtype: torch.dtype
    packing: bool
    checkpointing: bool
    eager: bool = False  # attention that holds [L, L]
    config_json: str = field(init=False, repr=False)  # what tells configs apart

    def __post_init__(self) -> None:
        object.__setattr__(self, "config_json", self.config.to_json_string(use_diff=False))

    @staticmethod
    def of(model: ModelConfig, key: str, scores: bool) -> Architecture:
        """Return a model's architecture; key: its section. All but eager attention is fused."""
        source = repr((model.path, model.from_config, model.tokenizer, model.revision, model.trust_remote_code))
        if source not in _CONFIGS:
            _CONFIGS[source] = load_config(model, key)
        attention = model.attn_implementation
        packing = model.packing and attention in (None, "sdpa")
        dtype, eager = torch_dtype(model), attention == "eager"
        return Architecture(_CONFIGS[source], scores, dtype, packing, model.gradient_checkpointing, eager)

    @property
    def num_layers(self) -> int:
        """Number of layers of the full model."""
        return int(self.config.get_text_config().num_hidden_layers)


_CONFIGS: dict[str, PreTrainedConfig] = {}  # by source: reading the config from a GGUF file takes seconds


@lru_cache(maxsize=64)
def meta_model(architecture: Architecture, num_layers: int) -> nn.Module:
    """Return the model with this number of layers, wrapped as the engines wrap it, without weights.

    Raises InputError if transformers cannot build it.
    """
    config = copy.deepcopy(architecture.config)
    text = config.get_text_config()
    text.num_hidden_layers = num_layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:num_layers]
    options: dict[str, Any] = {"dtype": architecture.dtype}
    if architecture.eager:
        options["attn_implementation"] = "eager"
    try:
        with torch.device("meta"):
            if architecture.scores:
                config.num_labels = 1
                model = AutoModelForSequenceClassification.from_config(config, **options)
                if not hasattr(model, "score"):
                    return PairScorer(model)
                model.score = Float32Head(model.score)
            else:
                model = AutoModelForCausalLM.from_config(config, **options)
    except Exception as error:  # transformers raises many types
        raise InputError(f"cannot build a {config.model_type} model for the plan: {one_line(error, 300)}") from error
    switch_dropout_off(model)
    if architecture.packing:
        use_packing(model)
    if architecture.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return TokenScorer(model) if architecture.scores else ResponseLM(model)


@lru_cache(maxsize=64)
def parameter_sizes(architecture: Architecture) -> tuple[int, ...]:
    """Return the elements of each parameter of the full model; tied parameters count once."""
    model = meta_model(architecture, architecture.num_layers)
    return tuple(parameter.numel() for parameter in model.parameters())


@lru_cache(maxsize=64)
def layer_size(architecture: Architecture) -> int:
    """Return the number of elements in one layer's parameters."""
    one, two = (sum(part.numel() for part in meta_model(architecture, depth).parameters()) for depth in (1, 2))
    return two - one
