"""Scores of mean 0 and standard deviation 1, by running moments or in the weights of a head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean and spread of all scores so far, in float64, so that a checkpoint keeps them exactly."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean

    def updated(self, scores: Tensor) -> Moments:
        """Return the moments after more scores [B].

        Source: the parallel update of Chan, Golub and LeVeque, "Updating Formulae and a Pairwise
        Algorithm for Computing Sample Variances" (1979).
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
        """Subtract the mean from scores [B] and divide by the deviation, if that is not 0."""
        deviation = (self.squares / max(1, self.count)) ** 0.5 or 1.0
        return ((scores.double() - self.mean) / deviation).to(scores.dtype)


def normalised_head(weight: Tensor, hidden: Tensor, shrinkage: float = 1e-3) -> Tensor:
    """Return head weights [d] whose scores on calibration rows have mean 0 and deviation 1.

    weight: [d] of the trained head, which has no bias; hidden: [N, d], the inputs of the head on
    those rows.

    Dividing by the deviation only rescales. Subtracting the mean needs a bias, which transformers'
    classifiers do not have. Instead, subtract a multiple of a direction u whose score is nearly 1 on
    every row: of all directions with u.mean = 1, the one along which the hidden states vary least,
    u = C^-1 mean / (mean^T C^-1 mean), where C is the covariance plus `shrinkage` times its mean
    diagonal. Its score is exactly 1 if a final LayerNorm with a bias makes some direction constant.
    The resulting mean and deviation are exact; two scores can change their order only if they differ
    by less than the spread of u's score.
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
