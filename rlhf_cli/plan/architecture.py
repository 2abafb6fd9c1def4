"""A model as the plan sees it, built without weights from its transformers config."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig

from rlhf_cli.config.errors import InputError
from rlhf_cli.models.heads import Float32Head, PairScorer, ResponseLM, TokenScorer
from rlhf_cli.models.load_models import switch_dropout_off
from rlhf_cli.models.packed_forward import use_packing
from rlhf_cli.system.text import one_line


@dataclass(frozen=True)
class Architecture:
    """A model as the plan sees it: its config, its type and how it is run. Hashable: traces are kept by it."""

    config_json: str  # of transformers, as `to_json_string` gives it
    scores: bool  # a classifier with one label; else a causal language model
    dtype: torch.dtype
    packing: bool
    checkpointing: bool
    eager: bool = False  # attention that holds [L, L]

    @staticmethod
    def of(
        config: PreTrainedConfig,
        scores: bool,
        dtype: torch.dtype,
        packing: bool,
        checkpointing: bool,
        eager: bool = False,
    ) -> Architecture:
        """Keep a config under the text that tells it from others."""
        text = config.to_json_string(use_diff=False)
        _CONFIGS.setdefault(text, config)
        return Architecture(text, scores, dtype, packing, checkpointing, eager)

    @property
    def config(self) -> PreTrainedConfig:
        """The model's config; not to be changed."""
        return _CONFIGS[self.config_json]

    @property
    def num_layers(self) -> int:
        """Layers of the whole model."""
        return int(self.config.get_text_config().num_hidden_layers)


_CONFIGS: dict[str, PreTrainedConfig] = {}


@lru_cache(maxsize=64)
def meta_model(architecture: Architecture, num_layers: int) -> nn.Module:
    """Return the model with so many layers, wrapped as the engines have it, without weights.

    Raises InputError where transformers cannot build it so.
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
    except Exception as error:  # from a dozen places of transformers
        raise InputError(f"cannot build {config.model_type} for a plan: {one_line(error, 300)}") from error
    switch_dropout_off(model)
    if architecture.packing:
        use_packing(model)
    if architecture.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return TokenScorer(model) if architecture.scores else ResponseLM(model)


@lru_cache(maxsize=64)
def parameter_sizes(architecture: Architecture) -> tuple[int, ...]:
    """Return the elements of each parameter of the whole model; what is tied counts once."""
    return tuple(one.numel() for one in meta_model(architecture, architecture.num_layers).parameters())


@lru_cache(maxsize=64)
def layer_size(architecture: Architecture) -> int:
    """Return the elements of one layer's parameters."""
    one, two = (sum(part.numel() for part in meta_model(architecture, depth).parameters()) for depth in (1, 2))
    return two - one
