"""Which rows a step takes: a function of (seed, step) alone, so that a resumed run needs no data position."""

import random


def batch_indices(num_rows: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Return the row indices of the global batch of `step` (from 0).

    Rows come in a new seeded order each pass; a batch may reach over the end of a pass into the next one, so that
    no row is skipped or repeated when num_rows is not a multiple of batch_size.
    """
    first = step * batch_size
    orders: dict[int, list[int]] = {}
    indices = []
    for position in range(first, first + batch_size):
        turn, place = divmod(position, num_rows)
        if turn not in orders:
            orders[turn] = shuffled(num_rows, f"{seed}/rows/{turn}")
        indices.append(orders[turn][place])
    return indices


def shuffled(size: int, key: str) -> list[int]:
    """Return 0 .. size-1 in an order that depends on the key alone."""
    order = list(range(size))
    random.Random(key).shuffle(order)
    return order
