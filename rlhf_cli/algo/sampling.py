"""Inverse-transform sampling: with a number per token, a draw does not depend on its batch."""

import torch
from torch import Tensor


def top_p_filter(probs: Tensor, top_p: float) -> Tensor:
    """Keep the fewest most likely tokens of probs [B, V] that reach top_p, and renormalise."""
    if top_p >= 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True)
    reached_before = ordered.cumsum(dim=-1) - ordered >= top_p
    kept = probs.scatter(-1, order, ordered.masked_fill(reached_before, 0.0))
    return kept / kept.sum(dim=-1, keepdim=True)


def draw(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return a token id per row [B], distributed as softmax(logits / temperature) within top_p.

    logits: [B, V]; uniforms: [B] in [0, 1). The token is the first whose cumulative probability
    exceeds the uniform number.
    """
    probs = top_p_filter(torch.softmax(logits.float() / temperature, dim=-1), top_p)
    cumulated = probs.cumsum(dim=-1, dtype=torch.float64)
    target = uniforms.double()[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, target, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


def distance_from_slice(logits: Tensor, tokens: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Return how far each uniform number is outside its token's slice of the probability: [T].

    logits: [T, V]; tokens, uniforms: [T]. Inside, it is 0, so also (up to rounding) if `draw` drew
    the token from the same logits with top_p 1. Rows are handled one at a time, so that no float64
    copy of [T, V] is held.
    """
    distances = []
    for row, token, number in zip(logits, tokens.tolist(), uniforms.tolist(), strict=True):
        probs = torch.softmax(row.float() / temperature, dim=0).double()
        low, width = probs[:token].sum(), probs[token]
        distances.append((low - number).clamp(min=0) + (number - low - width).clamp(min=0))
    return torch.stack(distances)
