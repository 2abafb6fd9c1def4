"""Causal attention on a CPU by blocks of queries, and attention of one token, by matrix products.

PyTorch's own (2.13) takes twice as long without AMX, forwards and backwards (docs/performance.md).
Blocks of queries skip almost all work above the diagonal, keep the weights of a block in the
processor's cache, and store nothing of size [L, L]. In decoding, PyTorch splits the work into tasks
of a few microseconds and copies keys and values for each query head.

If the processor multiplies bfloat16 in tiles (AMX), PyTorch's forward pass is twice as fast instead.
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
_BLOCK = 64  # queries of a head per block; 32 takes the same time


class CausalAttention(torch.autograd.Function):
    """softmax(q k' * scale) v over each token and those before; K key heads serve H = K * G query heads."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return [B, H, L, d]; query: [B, H, L, d]; key, value: [B, K, L, d]."""
        if _has_tiles(query.dtype):
            output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        else:
            output = torch.empty_like(query)
            for block, _, weights, end in _blocks(query, key, scale):
                output[:, :, block] = (weights.to(value.dtype) @ value[:, :, :end]).view_as(output[:, :, block])
        ctx.save_for_backward(query, key, value, output)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """With weights P and D = sum of gradient * output: dS = P * (gradient v' - D), see arXiv:2205.14135."""
        query, key, value, output = ctx.saved_tensors
        of_output = gradients[0].to(query.dtype)
        summed = (of_output * output).sum(dim=-1, dtype=torch.float32)
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros(key.shape, dtype=torch.float32) for _ in range(2))
        for block, rows, weights, end in _blocks(query, key, ctx.scale):
            gradient = of_output[:, :, block].reshape(rows.shape)
            inner = (gradient @ value[:, :, :end].transpose(2, 3)).float()
            inner.sub_(summed[:, :, block].reshape(*rows.shape[:3], 1)).mul_(weights).mul_(ctx.scale)
            of_scores = inner.to(query.dtype)
            of_query[:, :, block] = (of_scores @ key[:, :, :end]).view_as(of_query[:, :, block])
            of_key[:, :, :end] += of_scores.transpose(2, 3) @ rows
            of_value[:, :, :end] += weights.to(query.dtype).transpose(2, 3) @ gradient
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None


def _blocks(query: Tensor, key: Tensor, scale: float) -> Iterator[tuple[slice, Tensor, Tensor, int]]:
    """Yield blocks of n queries: their slice of L, the queries, their weights, and the end of their keys.

    Queries: [B, K, G * n, d], with the G query heads of a key head one after the other. Weights:
    [B, K, G * n, keys] in float32, 0 on keys after a query.
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
    """Return whether the processor multiplies matrices of this type in tiles."""
    return dtype is torch.bfloat16 and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def attend_one_token(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return the attention output of one token [B, H, 1, d].

    key, value: [B, K, L, d]; mask: [B, 1, 1, L], true on keys to attend to.
    """
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
    """Implement transformers' attention interface: full sequences and one token here, the rest in PyTorch."""
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    if not options.get("dropout"):
        plain_mask = attention_mask is None or attention_mask.dtype is torch.bool
        if query.shape[2] == 1 and plain_mask and not query.requires_grad:
            return attend_one_token(query, key, value, attention_mask, scale).transpose(1, 2), None
        is_causal = options.get("is_causal")
        is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if is_causal and attention_mask is None and query.shape[2:] == key.shape[2:] == value.shape[2:]:
            output = CausalAttention.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
            return output.transpose(1, 2).contiguous(), None
    result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return result


def use_cpu_attention(model: PreTrainedModel) -> None:
    """Replace PyTorch's attention in a model, if it uses that."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
