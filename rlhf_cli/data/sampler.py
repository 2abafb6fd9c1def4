"""Which rows a step reads: a function of seed and step, so that resuming needs no position."""

from __future__ import annotations

import random
from array import array
from functools import lru_cache


def batch_indices(num_rows: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Return the row indices of the global batch of `step` (from 0).

    Each pass has a new seeded order. A batch may continue into the next pass, so no row is skipped
    or repeated where num_rows is not a multiple of batch_size.
    """
    first = step * batch_size
    indices = []
    for position in range(first, first + batch_size):
        epoch, index = divmod(position, num_rows)
        indices.append(_order(num_rows, f"{seed}/rows/{epoch}")[index])
    return indices


@lru_cache(maxsize=2)  # a step reads from at most two passes, unless there are few rows
def _order(size: int, key: str) -> array[int]:
    return array("q", shuffled(size, key))


def shuffled(size: int, key: str) -> list[int]:
    """Return 0 .. size-1 in an order that depends on nothing but the key."""
    order = list(range(size))
    random.Random(key).shuffle(order)
    return order
