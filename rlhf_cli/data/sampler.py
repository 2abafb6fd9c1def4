"""Which rows a step takes: a function of (seed, step) alone, so that a resumed run needs no data position."""

from __future__ import annotations

import random
from array import array
from functools import lru_cache


def batch_indices(num_rows: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Return the row indices of the global batch of `step` (from 0).

    Rows come in a new seeded order each pass; a batch may reach over the end of a pass into the next one, so that
    no row is skipped or repeated when num_rows is not a multiple of batch_size.
    """
    first = step * batch_size
    indices = []
    for position in range(first, first + batch_size):
        turn, place = divmod(position, num_rows)
        indices.append(_order(num_rows, f"{seed}/rows/{turn}")[place])
    return indices


@lru_cache(maxsize=2)  # a pass takes many steps, and a step reads of two passes at most but where rows are few
def _order(size: int, key: str) -> array[int]:
    return array("q", shuffled(size, key))


def shuffled(size: int, key: str) -> list[int]:
    """Return 0 .. size-1 in an order that depends on the key alone."""
    order = list(range(size))
    random.Random(key).shuffle(order)
    return order
