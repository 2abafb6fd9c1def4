"""Plan a run: build its memory map and compare it with a machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.plan_options import Misfit
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.plan.batch_counts import BatchCounts, batch_counts
from rlhf_cli.plan.machine import Machine
from rlhf_cli.plan.memory_map import MemoryMap, Peak, Topology, gib
from rlhf_cli.plan.phases import Config, Lengths
from rlhf_cli.plan.ppo_memory import PPOMemory
from rlhf_cli.plan.reward_memory import RewardMemory
from rlhf_cli.system.durable_files import folder_bytes
from rlhf_cli.system.text import one_line

_SHARED_MEMORY = 2**30  # what NVIDIA's guide to NCCL recommends for containers (--shm-size=1g)


@dataclass(frozen=True)
class Fit:
    """The memory plan of a run, and whether it fits a machine."""

    memory: MemoryMap
    machine: Machine
    batches: BatchCounts
    reserve: float = 0.0  # share of each GPU to leave free

    @cached_property
    def peak(self) -> Peak:
        """The peak that decides: on a GPU with its context, or in host memory without a GPU."""
        if not self.memory.topology.on_gpu:
            return self.memory.host_peak()
        return replace(self.memory.device_peak(), bytes=self.memory.gpu_bytes())

    @property
    def limit(self) -> int | None:
        """The memory that this peak must fit in; None if unknown."""
        return self.machine.gpu if self.memory.topology.on_gpu else self.machine.host

    @property
    def spare(self) -> float | None:
        """The share of this memory that is left at the peak; negative if it does not fit."""
        return None if self.limit is None else 1 - self.peak.bytes / self.limit

    @cached_property
    def misfits(self) -> tuple[str, ...]:
        """What does not fit the machine, a line each."""
        return tuple(self._misfits())

    def _misfits(self) -> Iterator[str]:
        memory, machine, topology = self.memory, self.machine, self.memory.topology
        if topology.on_gpu and machine.gpu is not None:
            usable = round(machine.gpu * (1 - self.reserve))
            if self.peak.bytes > usable:
                limit = f"{gib(usable)} usable ({gib(machine.gpu)} less {self.reserve:.0%})"
                yield f"GPU: needs {gib(self.peak.bytes)}, {limit}; peak in {self.peak}"
        host = memory.host_peak()
        if machine.host is not None and host.bytes > machine.host:
            ranks = f" for {ranks_text(topology.ranks_per_node)}"
            yield f"host memory: needs {gib(host.bytes)}{ranks}, {gib(machine.host)} available; peak in {host} per rank"
        if machine.disk is not None and memory.disk_bytes > machine.disk:
            files = (
                f"{memory.num_checkpoints} x {gib(memory.checkpoint)} of checkpoints + {gib(memory.exports)} of exports"
            )
            yield f"disk: needs {gib(memory.disk_bytes)} ({files}), {gib(machine.disk)} free"
        has_several_gpus = topology.on_gpu and topology.ranks_per_node > 1
        if has_several_gpus and machine.shared is not None and machine.shared < _SHARED_MEMORY:
            yield (
                f"/dev/shm: NCCL needs {gib(_SHARED_MEMORY)}, {gib(machine.shared)} free; start the container with "
                "--shm-size=1g"
            )

    @property
    def verdict(self) -> str:
        """One line: whether the run fits, when memory is fullest, and what fills it."""
        if self.misfits:
            return f"does not fit: {self.misfits[0]}"
        topology = self.memory.topology
        where = "per GPU" if topology.on_gpu else f"of host memory for {ranks_text(topology.ranks_per_node)}"
        if self.limit is None:
            return f"needs {gib(self.peak.bytes)} {where}; peak in {self.peak}"
        used = f"{gib(self.peak.bytes)} of {gib(self.limit)} {where}"
        return f"fits: {used}, {self.spare:.0%} to spare; peak in {self.peak}"

    def as_json(self) -> dict[str, Any]:
        """Return all figures, in bytes."""
        return {
            "fits": not self.misfits,
            "misfits": list(self.misfits),
            "spare": self.spare,
            "machine": {"gpu": self.machine.gpu, "host": self.machine.host, "disk": self.machine.disk},
            "batches": self.batches.numbers,
            "memory": self.memory.as_json(),
        }


def ranks_text(count: int) -> str:
    """Format a number of ranks."""
    return f"{count} rank" if count == 1 else f"{count} ranks"


def memory_map(
    config: Config, topology: Topology, lengths: Lengths | None = None, num_steps: int | None = None
) -> MemoryMap:
    """Return the memory map of a run.

    lengths: of the data, by default what the options allow; num_steps: of a reward-model run, once
    its data are known. Raises InputError if the shape of a model cannot be found.
    """
    lengths = lengths or Lengths.allowed(config)
    if isinstance(config, TrainPPOConfig):
        return PPOMemory(config, topology, lengths).memory_map()
    return RewardMemory(config, topology, lengths).memory_map(num_steps)


def fit(
    config: Config, topology: Topology, machine: Machine, lengths: Lengths | None = None, num_steps: int | None = None
) -> Fit:
    """Plan a run on a machine; lengths and num_steps: see `memory_map`. Raises InputError."""
    batches = batch_counts(config, topology.num_ranks, num_steps)
    return Fit(memory_map(config, topology, lengths, num_steps), machine, batches, config.plan.reserve)


def check_launch(
    config: Config, topology: Topology, folder: Path, lengths: Lengths, num_steps: int | None = None
) -> tuple[list[str], list[str], Fit | None]:
    """Plan a run on this machine before it loads models; return lines, warnings and the plan.

    Raises InputError if the run does not fit and plan.on_misfit is error. A model that cannot be
    planned does not stop the run.
    """
    lines = list(batch_counts(config, topology.num_ranks, num_steps).lines)
    if config.plan.on_misfit is Misfit.ignore:
        return lines, [], None
    try:
        planned = fit(config, topology, _this_machine(folder), lengths, num_steps)
    except Exception as error:  # an unforeseen kind of model must not keep a run from starting
        return [*lines, f"no memory plan: {type(error).__name__}: {one_line(error, 300)}"], [], None
    if not planned.misfits:
        return [*lines, f"memory plan: {planned.verdict}"], [], planned
    advice = "run `rlhf plan` with the same options for advice, or set plan.on_misfit=ignore"
    if config.plan.on_misfit is Misfit.error:
        raise InputError(f"the memory plan does not fit this machine: {'; '.join(planned.misfits)}; {advice}")
    warnings = [f"the memory plan does not fit this machine: {line}" for line in planned.misfits]
    warnings[-1] += f"; {advice}"
    return lines, warnings, planned


def _this_machine(folder: Path) -> Machine:
    """Measure this machine; a resumed run's checkpoints count as free: new ones replace them."""
    machine, checkpoints = Machine.here(folder), folder / "checkpoints"
    if machine.disk is None or not checkpoints.is_dir():
        return machine
    return replace(machine, disk=machine.disk + folder_bytes(checkpoints))
