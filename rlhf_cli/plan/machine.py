"""The memory and disk space of a machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_cli.config.plan_options import PlanConfig, num_bytes
from rlhf_cli.system.durable_files import free_bytes


@dataclass(frozen=True)
class Machine:
    """Bytes that a machine offers; None if unknown."""

    gpu: int | None  # of each GPU; None if there is no GPU
    host: int | None
    disk: int | None = None  # free where the run folder is
    shared: int | None = None  # free in /dev/shm

    @staticmethod
    def here(folder: Path) -> Machine:
        """Measure this machine: all memory of its smallest GPU, and the available host memory."""
        gpu = None
        if torch.cuda.is_available():
            devices = range(torch.cuda.device_count())
            gpu = min(torch.cuda.get_device_properties(number).total_memory for number in devices)
        shared = Path("/dev/shm")
        return Machine(gpu, _host_memory(), free_bytes(folder), free_bytes(shared) if shared.is_dir() else None)

    def planned(self, plan: PlanConfig) -> Machine:
        """Return the machine that the options describe, or this one if they describe none."""
        if plan.gpu_memory is None and plan.host_memory is None:
            return self
        gpu = self.gpu if plan.gpu_memory is None else num_bytes(plan.gpu_memory, "plan.gpu_memory")
        return Machine(gpu, None if plan.host_memory is None else num_bytes(plan.host_memory, "plan.host_memory"))


def _host_memory() -> int | None:
    """Return the bytes that processes can still allocate, by the kernel and the control group."""
    return min((size for size in (_available(), _left_in_group()) if size is not None), default=None)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left_in_group() -> int | None:
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))
