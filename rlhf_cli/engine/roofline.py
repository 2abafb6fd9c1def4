"""The peak matrix-multiplication rate of the device, measured at the start of a run."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

CPU_SIDE, GPU_SIDE = 1024, 8192  # of the square matrices: a GPU needs larger ones to be busy
_REPEATS = 7


@dataclass(frozen=True)
class Work:
    """What one phase of a step computes, summed over all ranks."""

    flops: float  # the minimum it takes; recomputed activations do not count
    tokens: float


def matmul_flops(dtype: torch.dtype) -> float:
    """Return the rate of square matrix products in FLOP/s, summed over the ranks, which all compute at once.

    The median of seven repeats. On a CPU this takes about 0.1 s, in float32 about 0.5 s.
    """
    from rlhf_cli.engine import distributed  # loads DeepSpeed, which the memory plan must not: it takes seconds

    device = distributed.device()
    size = CPU_SIDE if device.type == "cpu" else GPU_SIDE
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(_REPEATS):
        distributed.synchronise()
        start = time.perf_counter()
        left @ right
        distributed.synchronise()
        seconds.append(time.perf_counter() - start)
    rate = torch.tensor(2 * size**3 / statistics.median(seconds), dtype=torch.float64, device=device)
    return float(distributed.global_sum(rate))
