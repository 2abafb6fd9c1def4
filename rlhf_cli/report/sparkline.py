"""Draw the values of a metric as a line of block characters."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from statistics import fmean

import numpy as np

WINDOW = 10  # the newest value is compared with the mean of this many values before it
BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as at most `width` blocks.

    Each block is the mean of an equal share of the values. A share without a finite value is a
    space.
    """
    num_blocks = min(len(values), width)
    if num_blocks < 1:
        return ""
    numbers = np.asarray(values, dtype=np.float64)
    is_finite = np.isfinite(numbers)
    scale = np.abs(numbers[is_finite]).max(initial=0.0) or 1.0  # prevents overflow; equal values become exactly 1
    starts = np.arange(num_blocks) * len(numbers) // num_blocks
    sums = np.add.reduceat(np.where(is_finite, numbers, 0.0) / scale, starts)
    counts = np.add.reduceat(is_finite.astype(int), starts)
    means = sums[counts > 0] / counts[counts > 0]
    low, high = means.min(initial=math.inf), means.max(initial=-math.inf)
    levels = (means - low) / (high - low) * (len(BLOCKS) - 1) if high > low else np.full(len(means), 3)
    blocks = iter(BLOCKS[level] for level in levels.round().astype(int))
    return "".join(next(blocks) if count else " " for count in counts)


class History:
    """All values of one metric. A step that does not log the metric adds none."""

    def __init__(self) -> None:
        self.values = array("d")
        self.newest: float | None = None  # None: the newest step did not log it

    def add(self, value: float | None) -> None:
        """Add the value of the next step."""
        self.newest = value
        if value is not None:
            self.values.append(value)

    @property
    def change(self) -> float | None:
        """The newest value minus the mean of the ten before it, if both are finite."""
        previous = [value for value in self.values[-WINDOW - 1 : -1] if math.isfinite(value)]
        if self.newest is None or not math.isfinite(self.newest) or not previous:
            return None
        change = fmean(self.newest - value for value in previous)  # exactly 0 if all are equal
        return change if math.isfinite(change) else None
