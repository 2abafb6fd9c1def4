"""Learning-rate schedules: pure functions of the update's number, so that nothing is saved."""

import math


def warmup_factor(update: int, num_warmup: int) -> float:
    """Rise linearly to 1, first reached at update num_warmup - 1; updates count from 0."""
    return 1.0 if update >= num_warmup else (update + 1) / num_warmup


def decay_progress(update: int, num_updates: int, num_warmup: int) -> float:
    """Return the share of the decay done: 0 until the end of the warm-up, 1 at the last update."""
    peak = max(num_warmup - 1, 0)
    return 0.0 if update <= peak else (update - peak) / (num_updates - 1 - peak)


def linear_factor(progress: float, floor: float) -> float:
    """Fall linearly from 1 to `floor`."""
    return 1 - (1 - floor) * progress


def cosine_factor(progress: float, floor: float) -> float:
    """Fall along half a cosine from 1 to `floor` (arXiv:1608.03983, eq. 5, without restarts)."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
