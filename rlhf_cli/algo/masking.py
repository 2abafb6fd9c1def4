"""Reductions over the real tokens of a padded batch: masks are 1 on them and 0 on padding."""

import torch
from torch import Tensor


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return the bool mask [B, size] that is 1 on the first lengths[b] columns of row b."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of `values` where `mask` is 1, a scalar; other values may even be NaN.

    The gradient of a masked value is 0 times its own derivative, so that derivative must be finite.
    """
    return torch.where(mask.bool(), values, torch.zeros_like(values)).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `values` where `mask` is 1, a scalar; 0 for an empty mask."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Return the population variance of `values` where `mask` is 1; 0 for an empty mask."""
    return masked_mean((values - masked_mean(values, mask)).square(), mask)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Scale values [B, T] to population variance 1 over the mask; with shift_mean, to mean 0 too.

    The result is 0 outside the mask. Constant values become 0, or stay as they are without
    shift_mean, and never NaN: eps is added to the variance.
    """
    mean = masked_mean(values, mask)
    whitened = (values - mean) * torch.rsqrt(masked_variance(values, mask) + eps)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask.bool(), whitened, torch.zeros_like(values))
