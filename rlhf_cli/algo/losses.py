"""Losses. Those over tokens come back per token [B, T]: one place, the trainer, reduces them by the global count."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float) -> Tensor:
    """Clipped surrogate per token [B, T] (PPO, arXiv:1707.06347, eq. 7, negated). Aggregate with a mask."""
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def policy_clipped(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float) -> Tensor:
    """1 on tokens [B, T] whose surrogate is clipped, so that they give no gradient; else 0."""
    ratio = torch.exp(logprobs - old_logprobs)
    return (((ratio > 1 + cliprange) & (advantages > 0)) | ((ratio < 1 - cliprange) & (advantages < 0))).float()


def approx_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """KL(old policy || policy) per token [B, T], estimated by k3: (ratio - 1) - log ratio, never negative."""
    log_ratio = logprobs - old_logprobs
    return torch.expm1(log_ratio) - log_ratio


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float) -> Tensor:
    """Clipped squared error per token [B, T]: 0.5 * max((V-R)^2, (clip(V, V_old - c, V_old + c) - R)^2).

    Source: the value clipping of the PPO reference implementation, as in arXiv:2203.02155.
    """
    clipped = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def value_clipped(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float) -> Tensor:
    """1 on tokens [B, T] where the clipped error is the larger one, so that they give no gradient; else 0."""
    clipped = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    return ((clipped - returns).square() > (values - returns).square()).float()


def preference_loss(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """Bradley-Terry loss per pair [B]: -log sigmoid(chosen - rejected) (arXiv:2203.02155, eq. 1, for K = 2)."""
    return -logsigmoid(chosen_scores - rejected_scores)


def preference_correct(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """1 where the chosen answer scores higher, 0 where lower, a half at a tie; [B]."""
    margin = chosen_scores - rejected_scores
    return (margin > 0).float() + 0.5 * (margin == 0).float()
