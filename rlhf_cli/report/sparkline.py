"""The course of a figure in little room: in memory, and as a line of blocks."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

WINDOW = 10  # steps before the newest that it is compared with
BLOCKS = "▁▂▃▄▅▆▇█"
_MOST_POINTS = 512  # of a history: more than any terminal has columns for


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as at most `width` blocks, each the mean of its share of them; a gap where none is finite."""
    number = min(len(values), width)
    shares = [values[i * len(values) // number : (i + 1) * len(values) // number] for i in range(number)]
    means = [_mean(share) for share in shares]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = high / 2 - low / 2  # halves: the whole may be larger than the largest float
    middle = len(BLOCKS) // 2 - 1  # of a curve that is flat

    def block(mean: float) -> str:
        if not math.isfinite(mean):
            return " "
        return BLOCKS[round((mean / 2 - low / 2) / span * (len(BLOCKS) - 1)) if span else middle]

    return "".join(block(mean) for mean in means)


class History:
    """What a metric has been, in bounded memory: where points are too many, each two become their mean."""

    def __init__(self) -> None:
        self.newest: float | None = None  # None: the newest step has not logged it
        self._recent: deque[float] = deque(maxlen=WINDOW + 1)
        self._points: list[float] = []
        self._stride = 1  # steps a point
        self._mean, self._num_finite, self._num_open = math.nan, 0, 0  # of the point to come

    def __bool__(self) -> bool:
        return bool(self._recent)

    def add(self, value: float | None) -> None:
        """Take in what a step has logged, if it has."""
        self.newest = value
        if value is None:
            return
        self._recent.append(value)
        self._num_open += 1
        if math.isfinite(value):
            self._num_finite += 1
            self._mean = self._mean + (value - self._mean) / self._num_finite if self._num_finite > 1 else value
        if self._num_open == self._stride:
            self._points.append(self._mean)
            self._mean, self._num_finite, self._num_open = math.nan, 0, 0
        if len(self._points) == _MOST_POINTS:
            self._points = [_mean(pair) for pair in list(pairwise(self._points))[::2]]
            self._stride *= 2

    @property
    def points(self) -> list[float]:
        """Return means over equally many steps, the last one over those that are left."""
        return [*self._points, self._mean] if self._num_open else self._points

    @property
    def change(self) -> float | None:
        """Return the newest value less the mean of the ten before it; None where either is missing or not finite."""
        if self.newest is None:
            return None
        change = self.newest - _mean(list(self._recent)[:-1])
        return change if math.isfinite(change) else None


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the finite ones, NaN without any; that of equal ones is exact, so that no change is none."""
    finite = [value for value in values if math.isfinite(value)]
    return finite[0] + sum(value - finite[0] for value in finite) / len(finite) if finite else math.nan
