"""Run models on packed sequences: layers process each token once, attention sees full sequences."""

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

_PREFIX = "packed_"
_BASES = ("sdpa", "sdpa_cpu")  # need no mask if all padding is on the right; the latter: cpu/attention.py

Attention = Callable[..., tuple[Tensor, None]]


@dataclass
class _PackedPass:
    """One forward pass. It counts layers: a model that does not hand it to one would mix sequences."""

    packing: Packing
    num_unpacked: int = 0  # layers whose attention has unpacked the sequences


def _attention(
    base: Attention,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: _PackedPass | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention interface; if packed, query, key and value: [1, heads, N, d]."""
    if packed is None:
        return base(module, query, key, value, attention_mask, **options)
    packed.num_unpacked += 1
    options.pop("position_ids", None)  # of the N tokens
    packing = packed.packing
    spread = (packing.unpack(one.squeeze(0).transpose(0, 1)).transpose(1, 2) for one in (query, key, value))
    output, _ = base(module, *spread, None, **options)
    return packing.pack(output)[None], None


def use_packing(model: PreTrainedModel) -> None:
    """Let a model read packed sequences, if its tokens interact only in attention layers that allow it."""
    base = model.config._attn_implementation
    if base in _BASES and _has_full_attention(model):
        name = _PREFIX + base
        AttentionInterface.register(name, partial(_attention, ALL_ATTENTION_FUNCTIONS[base]))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
        model.set_attn_implementation(name)


def _has_full_attention(model: PreTrainedModel) -> bool:
    """Return whether every layer is full attention, without windows, recurrence or chunks."""
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
    """Return whether `use_packing` took effect."""
    return bool(model.config._attn_implementation.startswith(_PREFIX))


def packed_pass(model: PreTrainedModel, packing: Packing) -> Any:
    """Run a model, or its backbone, on the N tokens as one row; return its output.

    Raises RuntimeError if a layer did not unpack the sequences.
    """
    packed = _PackedPass(packing)
    output = model(
        input_ids=packing.ids[None],
        position_ids=packing.positions[None],
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packing.ids.device),  # 4-D: used as is
        use_cache=False,
        packed=packed,
    )
    wanted = model.config.get_text_config().num_hidden_layers
    if packed.num_unpacked != wanted:
        raise RuntimeError(
            f"{type(model).__name__} unpacked the sequences in {packed.num_unpacked} of {wanted} layers; "
            "set model.packing=false"
        )
    return output
