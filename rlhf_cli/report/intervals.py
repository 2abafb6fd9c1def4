"""Confidence intervals of small samples."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

_MAX_DRAWS = 2**22  # numbers drawn at once, which bounds the memory


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def bootstrap_mean(values: list[float], level: float = 0.95, num_resamples: int = 10_000) -> Interval:
    """Return the mean with its percentile bootstrap interval (Efron 1979), always the same."""
    array = np.asarray(values, dtype=np.float64)
    draw, means = np.random.default_rng(0), np.empty(num_resamples)
    rows = max(1, _MAX_DRAWS // len(array))
    for start in range(0, num_resamples, rows):
        part = means[start : start + rows]
        part[:] = array[draw.integers(0, len(array), size=(len(part), len(array)))].mean(axis=1)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(array.mean()), float(low), float(high))


def wilson(successes: float, count: float, level: float = 0.95) -> Interval:
    """Return a share with its score interval (Wilson 1927), too wide if ties count a half."""
    share, z = successes / count, NormalDist().inv_cdf((1 + level) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))
