"""Causal attention on a CPU by matrix products, and that of one token at a time, where torch's own is slower.

torch's (2.13) takes twice as long, forwards and back (docs/log.md). Queries are taken a block at a time, so that what
lies above the diagonal is hardly computed and the weights of a block stay near the processor; nothing of [L, L] is
kept. In decoding torch's many tasks are a few microseconds each, and keys and values are copied for each query head.

Where the processor multiplies bfloat16 in tiles (AMX) it is the other way round, forwards: torch's takes half as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_cpu"
_BLOCK = 64  # queries of a head at a time; from 32 to 64 it takes the same time


class CausalAttention(torch.autograd.Function):
    """softmax(q k' * scale) v over the tokens up to each one; K key heads serve H = K * G query heads."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query: [B, H, L, d]; key, value: [B, K, L, d]; returns [B, H, L, d]."""
        if _has_tiles(query.dtype):
            output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        else:
            output = torch.empty_like(query)
            for some, _, weights, end in _blocks(query, key, scale):
                output[:, :, some] = (weights.to(value.dtype) @ value[:, :, :end]).view_as(output[:, :, some])
        ctx.save_for_backward(query, key, value, output)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """With P the weights and D = sum of gradient * output: dS = P * (gradient v' - D), as in arXiv:2205.14135."""
        query, key, value, output = ctx.saved_tensors
        of_output = gradients[0].to(query.dtype)
        summed = (of_output * output).sum(dim=-1, dtype=torch.float32)
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros(key.shape, dtype=torch.float32) for _ in range(2))
        for some, rows, weights, end in _blocks(query, key, ctx.scale):
            gradient = of_output[:, :, some].reshape(rows.shape)
            inner = (gradient @ value[:, :, :end].transpose(2, 3)).float()
            inner.sub_(summed[:, :, some].reshape(*rows.shape[:3], 1)).mul_(weights).mul_(ctx.scale)
            of_scores = inner.to(query.dtype)
            of_query[:, :, some] = (of_scores @ key[:, :, :end]).view_as(of_query[:, :, some])
            of_key[:, :, :end] += of_scores.transpose(2, 3) @ rows
            of_value[:, :, :end] += weights.to(query.dtype).transpose(2, 3) @ gradient
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None


def _blocks(query: Tensor, key: Tensor, scale: float) -> Iterator[tuple[slice, Tensor, Tensor, int]]:
    """Yield some queries after the other: which (n of L); they, [B, K, G * n, d]; their weights; the keys they see.

    The weights, [B, K, G * n, keys] in float32, are 0 on what comes after a query. The G query heads of a key head
    stand one after the other.
    """
    batch, _, length, width = query.shape
    for start in range(0, length, _BLOCK):
        end = min(length, start + _BLOCK)
        later = torch.ones((end - start, end - start), dtype=torch.bool).triu_(1)
        rows = query[:, :, start:end].reshape(batch, key.shape[1], -1, width)
        scores = (rows @ key[:, :, :end].transpose(2, 3)).float().mul_(scale)
        scores.view(*scores.shape[:2], -1, end - start, end)[..., start:].masked_fill_(later, -torch.inf)
        yield slice(start, end), rows, torch.softmax(scores, dim=-1), end


def _has_tiles(dtype: torch.dtype) -> bool:
    """Say whether the processor multiplies matrices of this type in tiles."""
    return dtype is torch.bfloat16 and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def one_token(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of the newest token [B, H, 1, d] to all of key and value [B, K, L, d]; mask: [B, 1, 1, L], 1 to see."""
    if _has_tiles(query.dtype):
        return scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True)
    grouped = query.reshape(len(query), key.shape[1], -1, query.shape[-1])
    scores = (grouped @ key.transpose(2, 3)).float() * scale
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    return (torch.softmax(scores, dim=-1).to(value.dtype) @ value).view_as(query)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Serve transformers' attention interface: CausalAttention on whole texts, else `one_token` or torch's own."""
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    if not options.get("dropout"):
        plain_mask = attention_mask is None or attention_mask.dtype is torch.bool
        if query.shape[2] == 1 and plain_mask and not query.requires_grad:
            return one_token(query, key, value, attention_mask, scale).transpose(1, 2), None
        is_causal = options.get("is_causal")
        is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if is_causal and attention_mask is None and query.shape[2:] == key.shape[2:] == value.shape[2:]:
            output = CausalAttention.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
            return output.transpose(1, 2).contiguous(), None
    result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return result


def use_on_cpu(model: PreTrainedModel) -> None:
    """Let a model that uses torch's attention use this one, where there is no GPU."""
    if model.config._attn_implementation == "sdpa" and not torch.cuda.is_available():
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
