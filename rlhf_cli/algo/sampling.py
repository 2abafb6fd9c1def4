"""Drawing tokens by inverse transform: one uniform number a token, so that a draw does not depend on its batch."""

import torch
from torch import Tensor


def top_p_filter(probs: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches top_p, renormalised; probs: [B, V]."""
    if top_p >= 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True)
    reached_before = ordered.cumsum(dim=-1) - ordered >= top_p
    kept = probs.scatter(-1, order, ordered.masked_fill(reached_before, 0.0))
    return kept / kept.sum(dim=-1, keepdim=True)


def draw(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return one token id a row [B], distributed as softmax(logits / temperature) within top_p.

    logits: [B, V]; uniforms: [B], each in [0, 1): the token is the first whose cumulated probability exceeds it.
    """
    probs = top_p_filter(torch.softmax(logits.float() / temperature, dim=-1), top_p)
    cumulated = probs.cumsum(dim=-1, dtype=torch.float64)
    target = uniforms.double()[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, target, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


def distance_from_slice(logits: Tensor, tokens: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Return how far each uniform number lies outside the slice of probability of its token [T]; 0 inside.

    logits: [T, V]; tokens, uniforms: [T]. Where `draw` picked the token from these very logits, with top_p 1, it is 0
    up to rounding. Rows are taken one by one, so that no float64 copy of the whole [T, V] is held.
    """
    distances = []
    for row, token, number in zip(logits, tokens.tolist(), uniforms.tolist(), strict=True):
        probs = torch.softmax(row.float() / temperature, dim=0).double()
        low, width = probs[:token].sum(), probs[token]
        distances.append((low - number).clamp(min=0) + (number - low - width).clamp(min=0))
    return torch.stack(distances)
