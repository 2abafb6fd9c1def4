"""Confidence intervals of small samples."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def bootstrap_mean(values: list[float], level: float = 0.95, num_resamples: int = 10_000) -> Interval:
    """Return the mean with its percentile bootstrap interval (Efron 1979); resampling is seeded."""
    array = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, len(array), size=(num_resamples, len(array)))
    means = array[drawn].mean(axis=1)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(array.mean()), float(low), float(high))
