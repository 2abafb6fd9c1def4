"""Rewards per token from scores, and generalised advantage estimation."""

import torch
from torch import Tensor


def missing_eos_scores(scores: Tensor, ended: Tensor, penalty: float, replace: bool) -> Tensor:
    """Subtract `penalty` from scores of responses without an end token, or set them to -penalty.

    scores: [B]; ended: [B] bool. Source: the EOS trick of arXiv:2403.17031, which replaces the
    score.
    """
    penalised = torch.full_like(scores, -penalty) if replace else scores - penalty
    return torch.where(ended, scores, penalised)


def min_length_scores(scores: Tensor, lengths: Tensor, min_length: int, penalty: float) -> Tensor:
    """Subtract `penalty` from scores [B] of responses whose lengths [B] are below min_length."""
    return torch.where(lengths < min_length, scores - penalty, scores)


def length_scores(scores: Tensor, lengths: Tensor, free: int, penalty: float) -> Tensor:
    """Subtract `penalty` from scores [B] for each token (lengths: [B]) after the first `free`."""
    return scores - penalty * (lengths - free).clamp(min=0)


def repetition(response: tuple[int, ...], size: int) -> float:
    """Return the share of a response's n-grams (n = `size`) that occur earlier in it.

    It is 0 if none is repeated or if the response has fewer than n tokens. Source: 1 - distinct-n
    of arXiv:1510.03055, as in rep-n of arXiv:2202.06417.
    """
    ngrams = [response[start : start + size] for start in range(len(response) - size + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return rewards [B, T]: -kl_coef * kl on every response token, plus the score on the last one.

    scores: [B]; kl, mask: [B, T]. The mask is 1 on response tokens, which come first; each row has
    one or more. Source: arXiv:2203.02155, section 3.5 (eq. 2); here each token gets its own KL
    term.
    """
    rewards = torch.where(mask.bool(), -kl_coef * kl, torch.zeros_like(kl))
    last = mask.long().sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return unwhitened advantages and returns (advantages + values), both [B, T] and 0 on padding.

    rewards, values, mask: [B, T]. The mask is 1 on response tokens, which come first; the content
    of the padding does not matter. The value after the last token is 0. Source: generalised
    advantage estimation, arXiv:1506.02438, eq. 16.
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
