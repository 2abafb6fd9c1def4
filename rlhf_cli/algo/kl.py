"""Estimators of KL(policy || reference) from tokens that the policy sampled.

Source: J. Schulman, "Approximating KL divergence" (2020): with r = q/p,
k1 = -log r, k2 = (log r)^2 / 2, k3 = (r - 1) - log r.
"""

import torch
from torch import Tensor


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return the log-ratio per token [B, T]: unbiased, can be negative."""
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return half the squared log-ratio per token [B, T]: biased, never negative."""
    return 0.5 * (logprobs - ref_logprobs).square()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return exp(-k1) - 1 + k1 per token [B, T]: unbiased, never negative."""
    k1 = logprobs - ref_logprobs
    return torch.expm1(-k1) + k1


def is_clearly_negative(kl: Tensor) -> bool:
    """Return whether the mean of kl [B] is more than five standard errors below 0.

    kl: k1 summed over each response. If the scored policy sampled the responses, the expected mean
    is the KL, which is not negative. Use some hundreds of responses: with a few, the standard error
    itself is only a guess.
    """
    return bool(kl.mean() + 5 * kl.std() / len(kl) ** 0.5 < 0)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, num_responses: int, horizon: int) -> float:
    """Return kl_coef * (1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon), for the next step.

    kl: mean of the summed k1 of the n = num_responses responses, in nats; target: in the same unit;
    horizon: in responses. Source: arXiv:1909.08593.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_responses / horizon)
