"""Losses per token or pair; only the trainer reduces them, by the global count."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, low: float, high: float, dual_clip: float | None = None
) -> Tensor:
    """Return the clipped surrogate loss per token [B, T]; aggregate it with a mask.

    The ratio is clipped to [1 - low, 1 + high]. PPO uses low == high; arXiv:2503.14476 does not. If
    the advantage is negative, dual_clip caps the loss at -dual_clip * advantage (arXiv:1912.09729).
    Source: PPO, arXiv:1707.06347, eq. 7, negated.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - low, 1 + high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def policy_clipped(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, low: float, high: float, dual_clip: float | None = None
) -> Tensor:
    """Return 1 on tokens [B, T] that policy_loss clips, so that they have no gradient; else 0."""
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - low) & (advantages < 0))
    if dual_clip is not None:
        clipped |= (ratio > dual_clip) & (advantages < 0)
    return clipped.float()


def approx_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Estimate KL(old policy || policy) per token [B, T] by k3: (ratio - 1) - log ratio."""
    log_ratio = logprobs - old_logprobs
    return torch.expm1(log_ratio) - log_ratio


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float | None) -> Tensor:
    """Return the clipped squared error per token [B, T].

    It is 0.5 * max((V-R)^2, (clip(V, V_old - c, V_old + c) - R)^2), c = cliprange_value. Without c,
    it is the squared error 0.5 * (V-R)^2. Source: the value clipping of the PPO reference
    implementation, as in arXiv:2203.02155.
    """
    plain = (values - returns).square()
    if cliprange_value is None:
        return 0.5 * plain
    clipped = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    return 0.5 * torch.maximum(plain, (clipped - returns).square())


def value_clipped(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float | None) -> Tensor:
    """Return 1 on tokens [B, T] that value_loss clips, so that they have no gradient; else 0."""
    if cliprange_value is None:
        return torch.zeros_like(values)
    clipped = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    return ((clipped - returns).square() > (values - returns).square()).float()


def preference_loss(better: Tensor, worse: Tensor, margin: Tensor, confidence: Tensor) -> Tensor:
    """Return the Bradley-Terry loss per pair [P]: -c log sigmoid(d) - (1 - c) log sigmoid(-d).

    d = better - worse - margin, c = confidence. better, worse: scores [P]; margin: [P], 0 for no
    margin (arXiv:2307.09288, section 3.2.2); confidence: [P], the probability that the label is
    right: 1, or 1 - label smoothing (arXiv:2401.06080). With margin 0 and confidence 1, it is
    arXiv:2203.02155, eq. 1.
    """
    difference = better - worse - margin
    return -confidence * logsigmoid(difference) - (1 - confidence) * logsigmoid(-difference)


def centering_loss(better: Tensor, worse: Tensor) -> Tensor:
    """Return a pair's squared sum of scores [P]: it pulls the mean to 0 (arXiv:2312.09244)."""
    return (better + worse).square()


def preference_correct(better: Tensor, worse: Tensor) -> Tensor:
    """Return 1 if the better answer scores higher, 0 if lower, and 0.5 at a tie: [P]."""
    margin = better - worse
    return (margin > 0).float() + 0.5 * (margin == 0).float()
