"""Scores of mean 0 and deviation 1: baked into the weights of a bias-free linear head, or by running moments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean and spread of the scores seen so far, in float64, so that a checkpoint can keep them exactly."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean

    def joined(self, scores: Tensor) -> Moments:
        """Return the moments of these and of more scores [B].

        Source: the parallel update of Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
        Computing Sample Variances" (1979).
        """
        rows = scores.double()
        added, mean = len(rows), float(rows.mean())
        squares = float((rows - mean).square().sum())
        count, distance = self.count + added, mean - self.mean
        return Moments(
            count,
            self.mean + distance * added / count,
            self.squares + squares + distance**2 * self.count * added / count,
        )

    def normalise(self, scores: Tensor) -> Tensor:
        """Return scores [B] less the mean, divided by the deviation; only the former where all seen were alike."""
        deviation = (self.squares / max(1, self.count)) ** 0.5 or 1.0
        return ((scores.double() - self.mean) / deviation).to(scores.dtype)


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
