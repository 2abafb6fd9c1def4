"""Estimators of KL(policy || reference) from tokens sampled by the policy.

Source: J. Schulman, "Approximating KL divergence" (2020): with r = q/p, k1 = -log r, k2 = (log r)^2 / 2,
k3 = (r - 1) - log r.
"""

import torch
from torch import Tensor


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Log-ratio per token [B, T]: unbiased, may be negative."""
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Half the squared log-ratio per token [B, T]: biased, never negative."""
    return 0.5 * (logprobs - ref_logprobs).square()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(-k1) - 1 + k1 per token [B, T]: unbiased, never negative."""
    k1 = logprobs - ref_logprobs
    return torch.expm1(-k1) + k1


def clearly_negative(kl: Tensor) -> bool:
    """Say whether the mean of kl [B], k1 summed over each response, lies more than five standard errors below 0.

    Its expectation is the KL, which is not negative, where the responses were drawn from the policy that is scored.
    Take some hundreds of responses: of a few, the standard error itself is a guess.
    """
    return bool(kl.mean() + 5 * kl.std() / len(kl) ** 0.5 < 0)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, num_responses: int, horizon: int) -> float:
    """Return the coefficient for the next step: kl_coef * (1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon).

    kl: mean over the n = num_responses responses of their summed k1, in nats; target in the same unit; horizon in
    responses. Source: arXiv:1909.08593.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_responses / horizon)
