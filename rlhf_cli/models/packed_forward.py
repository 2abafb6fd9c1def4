"""Models that read packed texts: every layer sees each token once, attention alone sees whole texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf_cli.algo.packing import Packing
from rlhf_cli.models.cpu import attention as cpu_attention

_PREFIX = "packed_"
_BASES = ("sdpa", cpu_attention.NAME)  # those that need no mask where all padding is on the right

Attention = Callable[..., tuple[Tensor, None]]


@dataclass
class Pass:
    """One forward pass of packed texts. A model that did not hand it to its attention layers would mix the texts."""

    packing: Packing
    num_attended: int = 0  # layers whose attention has taken the texts apart


def _attention(
    base: Attention,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: Pass | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Serve transformers' attention interface; with `packed`, query, key and value are [1, heads, N, d]."""
    if packed is None:
        return base(module, query, key, value, attention_mask, **options)
    packed.num_attended += 1
    options.pop("position_ids", None)  # of the N tokens
    packing = packed.packing
    spread = (packing.spread(one.squeeze(0).transpose(0, 1)).transpose(1, 2) for one in (query, key, value))
    output, _ = base(module, *spread, None, **options)
    return packing.pick(output)[None], None


def use_packing(model: PreTrainedModel) -> None:
    """Let a model read packed texts, if tokens meet in its attention layers alone and these can be told of texts."""
    base = model.config._attn_implementation
    if base in _BASES and _meets_in_attention(model):
        name = _PREFIX + base
        AttentionInterface.register(name, partial(_attention, ALL_ATTENTION_FUNCTIONS[base]))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
        model.set_attn_implementation(name)


def _meets_in_attention(model: PreTrainedModel) -> bool:
    """Say whether every layer is full attention through transformers' interface: no window, recurrence or chunk."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return bool(
        model._supports_attention_backend
        and not model._is_stateful
        and kinds == {"full_attention"}
        and window is None
        and getattr(config, "attention_chunk_size", None) is None
    )


def reads_packed(model: PreTrainedModel) -> bool:
    """Say whether `use_packing` took effect."""
    return bool(model.config._attn_implementation.startswith(_PREFIX))


def packed_pass(model: PreTrainedModel, packing: Packing) -> Any:
    """Run a model, or its backbone, over the N tokens as one row; return its output.

    Raises RuntimeError where not every layer took the texts apart.
    """
    packed = Pass(packing)
    output = model(
        input_ids=packing.ids[None],
        position_ids=packing.positions[None],
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packing.ids.device),  # 4-D: taken as it is
        use_cache=False,
        packed=packed,
    )
    wanted = model.config.get_text_config().num_hidden_layers
    if packed.num_attended != wanted:
        raise RuntimeError(
            f"{type(model).__name__} took packed texts apart in {packed.num_attended} of {wanted} layers; "
            "set model.packing=false"
        )
    return output
