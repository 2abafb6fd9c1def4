"""Causal attention on a CPU by matrix products, where they are faster: the backward pass, and one token at a time.

torch's own (2.13) has a fast forward pass, and a backward pass that takes six times as long for short texts: see
docs/performance.md. Both keep one number a row, not the [L, L] weights. In decoding its many tasks are a few
microseconds each, and keys and values are copied for each query head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_cpu"
_LONGEST = 160  # tokens; of longer texts torch's own backward pass is the faster one


class CausalAttention(torch.autograd.Function):
    """softmax(q k' * scale) v over the tokens up to each one; K key heads serve H = K * G query heads."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Any:
        """query: [B, H, L, d]; key, value: [B, K, L, d]; returns [B, H, L, d]."""
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        groups = query.shape[1] // key.shape[1]
        whole = (tensor.repeat_interleave(groups, dim=1) if groups > 1 else tensor for tensor in (key, value))
        output, normaliser = flash(query, *whole, is_causal=True, scale=scale)
        ctx.save_for_backward(query, key, value, output, normaliser)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """With P the weights and D = sum of gradient * output: dS = P * (gradient v' - D), as in arXiv:2205.14135."""
        query, key, value, output, normaliser = ctx.saved_tensors
        batch, _, length, width = query.shape
        of_output = gradients[0].to(query.dtype)
        rows = (batch, key.shape[1], -1, width)  # the query heads of a key head, one after the other
        q, g = query.reshape(rows), of_output.reshape(rows)
        summed = (of_output * output).sum(dim=-1, dtype=torch.float32)
        scores = (q @ key.transpose(2, 3)).view(batch, -1, length, length).float().mul_(ctx.scale)
        weights = scores.sub_(normaliser.view(batch, -1, length, 1)).exp_().tril_()
        inner = (g @ value.transpose(2, 3)).view_as(weights).float()
        of_scores = inner.sub_(summed.view(batch, -1, length, 1)).mul_(weights).mul_(ctx.scale)
        square = (batch, key.shape[1], -1, length)
        p, s = weights.to(query.dtype).view(square), of_scores.to(query.dtype).view(square)
        return (s @ key).view_as(query), s.transpose(2, 3) @ q, p.transpose(2, 3) @ g, None


def one_token(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of the newest token [B, H, 1, d] to all of key and value [B, K, L, d]; mask: [B, 1, 1, L], 1 to see."""
    grouped = query.reshape(len(query), key.shape[1], -1, query.shape[-1])
    scores = (grouped @ key.transpose(2, 3)).float() * scale
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    return (torch.softmax(scores, dim=-1).to(value.dtype) @ value).view_as(query)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Serve transformers' attention interface: CausalAttention in training, else `one_token` or torch's own."""
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    simple = not options.get("dropout") and not query.requires_grad
    if simple and query.shape[2] == 1 and (attention_mask is None or attention_mask.dtype is torch.bool):
        return one_token(query, key, value, attention_mask, scale).transpose(1, 2), None
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain_causal = attention_mask is None and is_causal and not options.get("dropout")
    if plain_causal and query.requires_grad and 1 < query.shape[2] == key.shape[2] <= _LONGEST:
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
