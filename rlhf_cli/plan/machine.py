"""What this machine has: GPU and host memory, disk, shared memory; and whether a map fits in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_cli.config.plan_options import PlanConfig, num_bytes
from rlhf_cli.plan.memory_map import GIB, Item, MemoryMap
from rlhf_cli.system.durable_files import free_bytes

_SHARED_MEMORY = 2**30  # that NVIDIA's guide to NCCL asks containers for (--shm-size=1g)


@dataclass(frozen=True)
class Machine:
    """Bytes of one machine; None where they are not known."""

    gpu: int | None  # of each GPU; None: there is none
    host: int | None
    disk: int | None = None  # free, where the run folder is
    shared: int | None = None  # free in /dev/shm

    @staticmethod
    def here(folder: Path) -> Machine:
        """Measure this machine: whole GPUs, and of the host's memory what other processes leave."""
        gpu = None
        if torch.cuda.is_available():
            devices = range(torch.cuda.device_count())
            gpu = min(torch.cuda.get_device_properties(number).total_memory for number in devices)
        shared = Path("/dev/shm")
        return Machine(gpu, _host_memory(), free_bytes(folder), free_bytes(shared) if shared.is_dir() else None)

    def planned(self, plan: PlanConfig) -> Machine:
        """Return the machine that the options describe, where they do, in the place of this one."""
        gpu = self.gpu if plan.gpu_memory is None else num_bytes(plan.gpu_memory, "plan.gpu_memory")
        host = self.host if plan.host_memory is None else num_bytes(plan.host_memory, "plan.host_memory")
        elsewhere = plan.gpu_memory is not None or plan.host_memory is not None
        if elsewhere and plan.host_memory is None:
            host = None  # of the machine with that GPU, which nobody has told
        return Machine(gpu, host) if elsewhere else self


def misfits(found: MemoryMap, machine: Machine, reserve: float) -> list[str]:
    """Return, a line each, what of a map does not fit the machine."""
    lines = []
    if found.place.on_gpu and machine.gpu is not None:
        peak, usable = found.device_peak(), round(machine.gpu * (1 - reserve))
        needed = peak.bytes + found.context
        if needed > usable:
            lines.append(
                f"GPU: {gib(needed)} of {gib(usable)} ({gib(machine.gpu)} less {reserve:.0%}) in {peak.moment.phase}, "
                f"{peak.moment.name}; most of it: {named(peak.largest)}"
            )
    host = found.host_peak()
    if machine.host is not None and host.bytes > machine.host:
        several = f", {ranks(found.place.node_ranks)} together" if found.place.node_ranks > 1 else ""
        where = f"{host.moment.phase}, {host.moment.name}{several}"
        largest = named(host.largest)
        lines.append(f"host memory: {gib(host.bytes)} of {gib(machine.host)} in {where}; most of it: {largest} a rank")
    if machine.disk is not None and found.disk_bytes > machine.disk:
        lines.append(
            f"disk: {gib(found.disk_bytes)} ({found.num_checkpoints} checkpoints of {gib(found.checkpoint)} and "
            f"exports of {gib(found.exports)}), {gib(machine.disk)} free"
        )
    several_gpus = found.place.on_gpu and found.place.node_ranks > 1
    if several_gpus and machine.shared is not None and machine.shared < _SHARED_MEMORY:
        lines.append(
            f"/dev/shm: {gib(machine.shared)} free, NCCL wants {gib(_SHARED_MEMORY)}; start the container with "
            "--shm-size=1g"
        )
    return lines


def gib(size: float) -> str:
    """Write bytes for people; MiB where GiB say little."""
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def ranks(count: int) -> str:
    """Write a number of ranks for people."""
    return f"{count} rank" if count == 1 else f"{count} ranks"


def named(item: Item) -> str:
    """Write an item for people."""
    owner = f" of {item.model.replace('_', ' ')}" if item.model else ""
    return f"{item.what}{owner}, {gib(item.bytes)}"


def _host_memory() -> int | None:
    """Bytes that processes can still take: by the kernel's count, and by the limit of our control group."""
    found = [size for size in (_available(), _left_in_group()) if size is not None]
    return min(found) if found else None


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    line = next((one for one in lines if one.startswith("MemAvailable:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def _left_in_group() -> int | None:
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))
