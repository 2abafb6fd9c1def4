"""The memory map of a run: what each rank holds at each moment, on its GPU and in host memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

GIB = 2**30
PHASES = ("load", "rollout", "score", "update", "save")
LIBRARIES = 550 * 2**20  # host memory of a rank's process without any tensor: measured, docs/memory.md


@dataclass(frozen=True)
class Item:
    """Bytes of one kind that one rank holds."""

    model: str  # policy, reference, reward_model, value_model, model; "" if it belongs to no model
    what: str
    bytes: int


@dataclass(frozen=True)
class Moment:
    """A point within a phase at which memory use may be highest."""

    phase: str
    name: str
    device: tuple[Item, ...]  # on a rank's GPU, or in host memory if there is no GPU
    host: tuple[Item, ...] = ()  # of each rank, in host memory
    host_of_rank_0: tuple[Item, ...] = ()  # in host memory, of rank 0 only

    @property
    def device_bytes(self) -> int:
        """Bytes on a rank's device."""
        return total(self.device)


@dataclass(frozen=True)
class Peak:
    """The moment of highest memory use, and the largest item in it."""

    moment: Moment
    bytes: int
    largest: Item

    def __str__(self) -> str:
        owner = f" of {self.largest.model.replace('_', ' ')}" if self.largest.model else ""
        return (
            f"{self.moment.phase} ({self.moment.name}), mostly {self.largest.what}{owner} ({gib(self.largest.bytes)})"
        )

    def as_json(self) -> dict[str, Any]:
        """Return all figures, in bytes."""
        moment = {"phase": self.moment.phase, "moment": self.moment.name}
        return {**moment, "bytes": self.bytes, "largest": asdict(self.largest)}


@dataclass(frozen=True)
class Topology:
    """The ranks of a run."""

    num_ranks: int
    ranks_per_node: int
    on_gpu: bool


@dataclass(frozen=True)
class MemoryMap:
    """The moments of a run on some ranks, and its files."""

    moments: tuple[Moment, ...]
    topology: Topology
    context: int  # bytes that a rank's GPU holds besides tensors
    checkpoint: int  # bytes of one checkpoint
    num_checkpoints: int  # most that are on disk at once
    exports: int  # bytes of the exported models

    def device_peak(self, phase: str | None = None) -> Peak:
        """Return when a rank's device holds the most tensors, in one phase or in all."""
        moments = [moment for moment in self.moments if phase in (None, moment.phase)]
        return _peak((moment, moment.device_bytes, moment.device) for moment in moments)

    @property
    def running_peak(self) -> int:
        """Most bytes of tensors on a rank's device during a step, without loading and saving."""
        return max(moment.device_bytes for moment in self.moments if moment.phase not in ("load", "save"))

    def gpu_bytes(self, phase: str | None = None) -> int:
        """Return the most bytes that a GPU holds, including its context."""
        return self.device_peak(phase).bytes + self.context

    def host_peak(self) -> Peak:
        """Return when the host memory of a machine, with the libraries of all ranks, is fullest."""
        ranks = self.topology.ranks_per_node
        moments = ((moment, self._host_items(moment)) for moment in self.moments)
        return _peak(
            (
                moment,
                ranks * (total(items) + LIBRARIES) + total(moment.host_of_rank_0),
                (*items, *moment.host_of_rank_0),
            )
            for moment, items in moments
        )

    def rank_peak(self) -> int:
        """Return the most bytes that rank 0's process holds in host memory, with its libraries."""
        return LIBRARIES + max(total((*self._host_items(moment), *moment.host_of_rank_0)) for moment in self.moments)

    def _host_items(self, moment: Moment) -> tuple[Item, ...]:
        return moment.host if self.topology.on_gpu else (*moment.device, *moment.host)

    @property
    def disk_bytes(self) -> int:
        """Most bytes that the run folder takes."""
        return self.num_checkpoints * self.checkpoint + self.exports

    @property
    def phases(self) -> list[str]:
        """The phases of the run, in order."""
        return [phase for phase in PHASES if any(moment.phase == phase for moment in self.moments)]

    def as_json(self) -> dict[str, Any]:
        """Return all figures, in bytes."""
        return {
            "ranks": self.topology.num_ranks,
            "ranks_per_node": self.topology.ranks_per_node,
            "device": "gpu" if self.topology.on_gpu else "cpu",
            "context": self.context,
            "peak": {**self.device_peak().as_json(), "with_context": self.gpu_bytes()},
            "host_peak": {**self.host_peak().as_json(), "libraries_per_rank": LIBRARIES},
            "disk": {"checkpoint": self.checkpoint, "checkpoints": self.num_checkpoints, "exports": self.exports},
            "moments": [{**asdict(moment), "device_total": moment.device_bytes} for moment in self.moments],
        }


def total(items: Iterable[Item]) -> int:
    """Return the sum of the bytes of all items."""
    return sum(item.bytes for item in items)


def gib(size: float) -> str:
    """Format a number of bytes as GiB, or as MiB if it is small."""
    return f"{size / GIB:.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"


def _peak(moments: Iterable[tuple[Moment, int, tuple[Item, ...]]]) -> Peak:
    moment, size, items = max(moments, key=lambda candidate: candidate[1])
    return Peak(moment, size, max(items, key=lambda item: item.bytes, default=Item("", "nothing", 0)))
