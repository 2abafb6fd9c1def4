"""Options of the memory plan: the machine it is for, and what happens if a run does not fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from rlhf_cli.config.errors import InputError, require, require_finite_range

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}iB": 1024 ** (power + 1) for power, letter in enumerate("KMGT")},
    **{f"{letter}B": 1000 ** (power + 1) for power, letter in enumerate("KMGT")},
}


class Misfit(Enum):
    error = "error"  # stop with exit code 2 before models are loaded
    warn = "warn"  # warn and continue
    ignore = "ignore"


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    gpus: int | None = None
    """Ranks that `rlhf plan` plans for. Unset: `launch.num_gpus`."""

    gpus_per_node: int | None = None
    """Ranks per machine, which share its CPU memory. Unset: all."""

    gpu_memory: str | None = None
    """Memory of a GPU for `rlhf plan`, such as `80GiB`. Unset: this machine's GPU, or its CPU memory."""

    host_memory: str | None = None
    """CPU memory of a machine for `rlhf plan`, such as `512GiB`. Unset: this machine's."""

    gpu_overhead: str = "1.5GiB"
    """GPU memory of a rank besides tensors: CUDA context, cuBLAS workspaces and NCCL buffers."""

    reserve: float = 0.04
    """Fraction of GPU memory reserved for fragmentation in the allocator."""

    deadline_hours: float | None = None
    """Show the tokens per second needed to finish within this many hours. Unset: not shown."""

    on_misfit: Misfit = Misfit.warn
    """When the plan of a run exceeds this machine's GPU memory, CPU memory, disk or /dev/shm: stop,
    warn or ignore it."""

    def __post_init__(self) -> None:
        for key in ("gpus", "gpus_per_node"):
            count = getattr(self, key)
            require(count is None or 1 <= count <= 4096, f"plan.{key}", count, "between 1 and 4096, or null")
        for key in ("gpu_memory", "host_memory", "gpu_overhead"):
            if getattr(self, key) is not None:
                num_bytes(getattr(self, key), f"plan.{key}")
        require_finite_range("plan.reserve", self.reserve, 0.0, 0.5)
        hours = self.deadline_hours
        require(hours is None or hours > 0, "plan.deadline_hours", hours, "positive or null")


def num_bytes(text: str, key: str) -> int:
    """Parse `80GiB`, `512 GB` or a number of bytes; raise InputError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise InputError(f"{key} must be a size such as 80GiB (units: {', '.join(_UNITS)[2:]}), got {text}")
    return int(float(match[1]) * _UNITS[match[2]])
