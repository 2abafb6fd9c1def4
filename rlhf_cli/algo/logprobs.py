"""Log-probabilities of tokens and the entropy of their distributions, at a temperature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_CHUNK = 2**19  # logits held in float32 at once: 2 MiB, which fit a CPU's caches


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Return log softmax(logits / temperature) at `tokens`, float32, in the shape of `tokens`.

    logits: [..., V] of any float type; tokens: [...]. The forward and the backward pass each handle
    a few rows at a time, so they never hold a float32 copy of all logits.
    """
    return token_logprobs_and_entropy(logits, tokens, temperature)[0]


def token_logprobs_and_entropy(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return `token_logprobs`, and the entropies of softmax(logits / temperature) in nats."""
    flat = logits.reshape(-1, logits.shape[-1])
    logprobs, entropy = _LogProbs.apply(flat, tokens.reshape(-1), temperature)  # type: ignore[no-untyped-call]
    return logprobs.view(tokens.shape), entropy.view(tokens.shape)


class _LogProbs(torch.autograd.Function):
    """Keep the logits in their own type, and two numbers per row, for the backward pass.

    With z = logits / temperature, p = softmax(z) and H its entropy: d log p_a / dz = 1_a - p and dH
    / dz = -p (log p + H).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(tokens.shape, dtype=torch.float32, device=logits.device)
        entropy = torch.empty_like(logprobs)
        normaliser = torch.empty_like(logprobs)
        for rows in _chunks(*logits.shape):
            scaled = logits[rows].to(torch.float32, copy=True).div_(temperature)
            highest = scaled.amax(dim=1, keepdim=True)
            scaled -= highest
            odds = scaled.exp()  # p times the sum of all odds
            total = odds.sum(dim=1)
            log_total = total.log()
            normaliser[rows] = highest.squeeze(1) + log_total
            logprobs[rows] = scaled.gather(1, tokens[rows, None]).squeeze(1) - log_total
            entropy[rows] = log_total - odds.mul_(scaled).sum(dim=1) / total
        ctx.save_for_backward(logits, tokens, normaliser, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None, None]:
        of_logprobs, of_entropy = gradients
        logits, tokens, normaliser, entropy = ctx.saved_tensors
        result = torch.empty_like(logits)
        for rows in _chunks(*logits.shape):
            log_p = logits[rows].to(torch.float32, copy=True).div_(ctx.temperature).sub_(normaliser[rows, None])
            of_p = torch.zeros_like(normaliser[rows, None])  # the gradient is p times this, except at the tokens
            if of_logprobs is not None:
                of_p = of_p - of_logprobs[rows, None]
            if of_entropy is not None:
                of_p = of_p - (log_p + entropy[rows, None]).mul_(of_entropy[rows, None])
            gradient = log_p.exp_().mul_(of_p)
            if of_logprobs is not None:
                gradient.scatter_add_(1, tokens[rows, None], of_logprobs[rows, None])
            result[rows] = gradient.div_(ctx.temperature)
        return result, None, None


def _chunks(num_rows: int, width: int) -> Iterator[slice]:
    size = max(1, _CHUNK // width)
    for start in range(0, num_rows, size):
        yield slice(start, start + size)
