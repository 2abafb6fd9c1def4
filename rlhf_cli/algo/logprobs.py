"""Log-probabilities of given tokens, and the entropy of their distributions, at the sampling temperature."""

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Return log softmax(logits / temperature) at `tokens`, float32 [B, T].

    logits: [B, T, V], any float type; tokens: [B, T]. Rows are taken one by one, so that no float32 copy of the
    whole [B, T, V] is held at once in the forward pass.
    """
    rows = []
    for row, ids in zip(logits, tokens, strict=True):
        scaled = row.float() / temperature
        rows.append(scaled.gather(1, ids[:, None]).squeeze(1) - torch.logsumexp(scaled, dim=1))
    return torch.stack(rows)


def token_entropy(logits: Tensor, temperature: float) -> Tensor:
    """Return the entropy in nats of softmax(logits / temperature), float32 [B, T]; logits: [B, T, V]."""
    rows = []
    for row in logits:
        logprobs = torch.log_softmax(row.float() / temperature, dim=1)
        rows.append(-(logprobs.exp() * logprobs).sum(dim=1))
    return torch.stack(rows)
