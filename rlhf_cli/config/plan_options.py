"""The options of the plan: what machine it is for, and what to do where a run does not fit."""

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
    warn = "warn"  # say so and go on
    ignore = "ignore"  # say nothing


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    gpus: int | None = None
    """Ranks that `rlhf plan` plans for; unset: `launch.num_gpus`."""

    gpus_per_node: int | None = None
    """Of them on one machine; unset: all. They share its host memory."""

    gpu_memory: str | None = None
    """Memory of a GPU, such as `80GiB`, for `rlhf plan`; unset: that of this machine's GPU, or of its host."""

    host_memory: str | None = None
    """Memory of a machine, such as `512GiB`, for `rlhf plan`; unset: that of this one."""

    context: str = "1.5GiB"
    """What a rank's GPU holds beside tensors: the CUDA context, workspaces of cuBLAS, buffers of NCCL."""

    reserve: float = 0.04
    """Share of a GPU that fragments of the allocator may take."""

    deadline_hours: float | None = None
    """Show the tokens a second that let the run end in so many hours; unset: not."""

    on_misfit: Misfit = Misfit.warn
    """What a run does whose plan does not fit this machine: GPU, host memory, disk, /dev/shm."""

    def __post_init__(self) -> None:
        for key in ("gpus", "gpus_per_node"):
            count = getattr(self, key)
            require(count is None or 1 <= count <= 4096, f"plan.{key}", count, "between 1 and 4096, or null")
        for key in ("gpu_memory", "host_memory", "context"):
            if getattr(self, key) is not None:
                num_bytes(getattr(self, key), f"plan.{key}")
        require_finite_range("plan.reserve", self.reserve, 0.0, 0.5)
        hours = self.deadline_hours
        require(hours is None or hours > 0, "plan.deadline_hours", hours, "positive or null")


def num_bytes(text: str, key: str) -> int:
    """Read `80GiB`, `512 GB` or a plain number of bytes; raise InputError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise InputError(f"{key} must be a size such as 80GiB (units: {', '.join(_UNITS)[2:]}), got {text}")
    return int(float(match[1]) * _UNITS[match[2]])
