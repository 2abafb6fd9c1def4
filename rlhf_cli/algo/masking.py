"""Reductions over the real tokens of a padded batch. A mask is 1 on real tokens and 0 on padding."""

import torch
from torch import Tensor


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return the [B, size] bool mask whose row b is 1 on its first `lengths[b]` places. lengths: [B]."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` where `mask` is 1, a scalar; what stands under a 0 may be anything, NaN included.

    Its gradient there is 0 times the derivative of what made it, so that one must be finite.
    """
    return torch.where(mask.bool(), values, torch.zeros_like(values)).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is 1, a scalar; 0 for an empty mask."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """(Population) variance of `values` where `mask` is 1, a scalar; 0 for an empty mask."""
    return masked_mean((values - masked_mean(values, mask)).square(), mask)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Scale [B, T] to (population) variance 1 over the mask, and shift it to mean 0 unless told to keep the mean.

    0 outside the mask. Constant values give 0 (or stay what they are), not NaN: eps is added to the variance.
    """
    mean = masked_mean(values, mask)
    whitened = (values - mean) * torch.rsqrt(masked_variance(values, mask) + eps)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask.bool(), whitened, torch.zeros_like(values))
