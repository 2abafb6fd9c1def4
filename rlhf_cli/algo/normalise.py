"""Baking a score's normalisation into the weights of a bias-free linear head."""

import torch
from torch import Tensor


def normalised_head(weight: Tensor, hidden: Tensor, shrinkage: float = 1e-3) -> Tensor:
    """Return head weights [d] whose scores over the calibration rows have mean 0 and deviation 1.

    weight: [d] of the trained head, without bias; hidden: [N, d], what the head reads on those rows.

    Dividing by the deviation is a change of scale; but to subtract the mean takes a bias, which transformers'
    classifiers lack. In its place we subtract a multiple of the direction u with u.mean = 1 on which the hidden
    states vary least, u = C^-1 mean / (mean^T C^-1 mean): its score is 1 on every row, nearly (exactly, where a
    final LayerNorm with a bias makes some direction constant). C is the covariance plus `shrinkage` times its mean
    diagonal. Mean and deviation come out exact; the order of two scores may change only where they differ by less
    than the spread of u's score.
    """
    rows = hidden.double()
    mean = rows.mean(dim=0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    scale = covariance.diagonal().mean().clamp(min=1e-12)
    ridge = covariance + shrinkage * scale * torch.eye(len(mean), dtype=torch.float64)
    towards = torch.linalg.solve(ridge, mean)
    constant = towards / (mean @ towards).clamp(min=1e-12)
    centred = weight.double() - (weight.double() @ mean) * constant
    deviation = (centred @ covariance @ centred).clamp(min=1e-24).sqrt()
    head: Tensor = (centred / deviation).to(weight.dtype)
    return head
