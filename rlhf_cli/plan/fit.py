"""A run's map beside a machine: what fits, and what a run says of it before its models are loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.plan_options import Misfit
from rlhf_cli.plan.batch_counts import Batches, batches
from rlhf_cli.plan.build_map import memory_map
from rlhf_cli.plan.machine import Machine, gib, misfits, named, ranks
from rlhf_cli.plan.memory_map import MemoryMap, Place
from rlhf_cli.plan.phases import Config, Lengths
from rlhf_cli.system.durable_files import folder_bytes
from rlhf_cli.system.text import one_line


@dataclass(frozen=True)
class Fit:
    """A map, the machine it is for, and what of it does not fit."""

    found: MemoryMap
    machine: Machine
    batches: Batches
    misfits: tuple[str, ...]

    @property
    def spare(self) -> float | None:
        """Share of the GPU (of the host's memory, where there is none) that is left at the peak; below 0: missing."""
        limit = self.machine.gpu if self.found.place.on_gpu else self.machine.host
        if limit is None:
            return None
        used = self.found.gpu_bytes() if self.found.place.on_gpu else self.found.host_peak().bytes
        return 1 - used / limit

    @property
    def verdict(self) -> str:
        """Say in one line whether it fits, where it is fullest and what fills it."""
        if self.misfits:
            return f"does not fit: {self.misfits[0]}"
        peak = self.found.device_peak() if self.found.place.on_gpu else self.found.host_peak()
        used = peak.bytes + self.found.context if self.found.place.on_gpu else peak.bytes
        several = f", {ranks(self.found.place.node_ranks)} together" if self.found.place.node_ranks > 1 else ""
        where = "a GPU" if self.found.place.on_gpu else f"host memory{several}"
        limit = self.machine.gpu if self.found.place.on_gpu else self.machine.host
        of = "" if limit is None else f" of {gib(limit)}"
        spare = "" if self.spare is None else f", {self.spare:.0%} to spare"
        word = "fits" if limit is not None else "peak"
        return (
            f"{word}: {gib(used)}{of} ({where}){spare}; fullest in {peak.moment.phase} ({peak.moment.name}), most of "
            f"it {named(peak.largest)}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return all figures, in bytes."""
        return {
            "fits": not self.misfits,
            "misfits": list(self.misfits),
            "spare": self.spare,
            "machine": {"gpu": self.machine.gpu, "host": self.machine.host, "disk": self.machine.disk},
            "batches": self.batches.numbers,
            "memory": self.found.as_json(),
        }


def fit(
    config: Config, place: Place, machine: Machine, lengths: Lengths | None = None, num_steps: int | None = None
) -> Fit:
    """Plan a run on a machine; num_steps: of a reward-model run whose data are known. Raises InputError."""
    arithmetic = batches(config, place.num_ranks, num_steps)
    found = memory_map(config, place, lengths, num_steps)
    return Fit(found, machine, arithmetic, tuple(misfits(found, machine, config.plan.reserve)))


def _with_what_is_there(machine: Machine, folder: Path) -> Machine:
    """Count the disk that the checkpoints of a run take, which goes on, as free: new ones take their place."""
    kept = folder / "checkpoints"
    if machine.disk is None or not kept.is_dir():
        return machine
    return replace(machine, disk=machine.disk + folder_bytes(kept))


def check_launch(
    config: Config, place: Place, folder: Path, lengths: Lengths, num_steps: int | None = None
) -> tuple[list[str], list[str], Fit | None]:
    """Plan a run that is about to load its models on this machine; return what to say, what to warn of, and the plan.

    Raises InputError where it does not fit and plan.on_misfit is error. A model that cannot be planned is said to be
    so, and no more.
    """
    lines = list(batches(config, place.num_ranks, num_steps).lines)
    if config.plan.on_misfit is Misfit.ignore:
        return lines, [], None
    try:
        planned = fit(config, place, _with_what_is_there(Machine.here(folder), folder), lengths, num_steps)
    except Exception as error:  # a model of a kind that was not thought of must not keep a run from starting
        return [*lines, f"no memory plan: {type(error).__name__}: {one_line(error, 300)}"], [], None
    if not planned.misfits:
        return [*lines, f"memory plan: {planned.verdict}"], [], planned
    advice = "; `rlhf plan` with the same options says what to change, plan.on_misfit=ignore says nothing"
    if config.plan.on_misfit is Misfit.error:
        raise InputError("by plan this run does not fit: " + "; ".join(planned.misfits) + advice)
    warnings = [f"by plan this run does not fit: {line}" for line in planned.misfits]
    warnings[-1] += advice
    return lines, warnings, planned
