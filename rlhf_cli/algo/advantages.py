"""From scores to rewards per token, and generalised advantage estimation."""

import torch
from torch import Tensor


def missing_eos_scores(scores: Tensor, ended: Tensor, penalty: float, replace: bool) -> Tensor:
    """Return scores [B] where a response without an end token loses `penalty`, or has its score replaced by -penalty.

    scores: [B]; ended: [B] bool. Source: the EOS trick of arXiv:2403.17031, which replaces.
    """
    penalised = torch.full_like(scores, -penalty) if replace else scores - penalty
    return torch.where(ended, scores, penalised)


def min_length_scores(scores: Tensor, lengths: Tensor, min_length: int, penalty: float) -> Tensor:
    """Return scores [B] less `penalty` where a response has fewer than min_length tokens; scores, lengths: [B]."""
    return torch.where(lengths < min_length, scores - penalty, scores)


def length_scores(scores: Tensor, lengths: Tensor, free: int, penalty: float) -> Tensor:
    """Return scores [B] less `penalty` for every token of a response beyond the first `free`; scores, lengths: [B]."""
    return scores - penalty * (lengths - free).clamp(min=0)


def repetition(response: tuple[int, ...], size: int) -> float:
    """Return the share of a response's runs of `size` tokens that stand in it before: 0 where every run is new.

    A response shorter than such a run repeats nothing. Source: 1 - distinct-n of arXiv:1510.03055, as in rep-n of
    arXiv:2202.06417.
    """
    runs = [response[start : start + size] for start in range(len(response) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return rewards [B, T]: -kl_coef * kl on every response token, plus the score on the last one.

    scores: [B]; kl, mask: [B, T], mask 1 on response tokens, which come first, at least one a row.
    Source: arXiv:2203.02155, section 3.5 (eq. 2), with the KL term spread over the tokens that cause it.
    """
    rewards = torch.where(mask.bool(), -kl_coef * kl, torch.zeros_like(kl))
    last = mask.long().sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv:1506.02438, eq. 16), not whitened.

    rewards, values, mask: [B, T]; mask is 1 on response tokens, which come first; what stands in the padding
    does not matter. The value after the last token is 0.
    Returns advantages and returns (advantages + values), both [B, T] and 0 on padding.
    """
    real = mask.bool()
    values = torch.where(real, values, torch.zeros_like(values))
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = torch.where(real[:, t], delta + gamma * lam * next_advantage, torch.zeros_like(delta))
        next_value, next_advantage = values[:, t], advantages[:, t]
    return advantages, advantages + values
