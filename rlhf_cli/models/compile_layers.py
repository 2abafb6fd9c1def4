"""torch.compile for a model's layers, one at a time: all layers of a kind share what is compiled for the first."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each layer for any number of tokens. Attention stays as it is: it calls finished kernels."""
    name = model.config._attn_implementation
    if name in ALL_ATTENTION_FUNCTIONS:
        own = torch.compiler.disable(ALL_ATTENTION_FUNCTIONS[name])  # type: ignore[no-untyped-call]
        AttentionInterface.register(name, own)
    kinds = set(model._no_split_modules or ())
    for layer in model.modules():
        if type(layer).__name__ in kinds:
            layer.compile(dynamic=True)


def as_written(model: nn.Module) -> AbstractContextManager[None]:
    """Run a model without its compiled layers: decoding would have them compiled anew for its shapes."""
    if any(layer._compiled_call_impl is not None for layer in model.modules()):
        return cast(AbstractContextManager[None], torch.compiler.set_stance("force_eager"))
    return nullcontext()
