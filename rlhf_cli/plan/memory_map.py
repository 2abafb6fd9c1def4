"""The map of a run's memory: what each moment of each phase holds, on a GPU and in the host's memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

GIB = 2**30
PHASES = ("load", "rollout", "score", "update", "save")
LIBRARIES = 550 * 2**20  # that a rank's process takes without any tensor: measured, docs/memory.md


@dataclass(frozen=True)
class Item:
    """Bytes of one kind that one rank holds."""

    model: str  # policy, reference, reward_model, value_model, model; "" for what is no model's
    what: str
    bytes: int


@dataclass(frozen=True)
class Moment:
    """A time within a phase at which memory may be highest."""

    phase: str
    name: str
    device: tuple[Item, ...]  # on a rank's GPU; in the host's memory where there is none
    host: tuple[Item, ...] = ()  # of each rank, in the host's memory
    first: tuple[Item, ...] = ()  # in the host's memory, of rank 0 alone

    @property
    def device_bytes(self) -> int:
        """Bytes on a rank's device."""
        return total(self.device)


@dataclass(frozen=True)
class Peak:
    """Where memory is highest, and what causes it."""

    moment: Moment
    bytes: int
    largest: Item


@dataclass(frozen=True)
class Place:
    """Where a run is planned for."""

    num_ranks: int
    node_ranks: int  # of them on one machine
    on_gpu: bool


@dataclass(frozen=True)
class MemoryMap:
    """The moments of a run in a place."""

    moments: tuple[Moment, ...]
    place: Place
    context: int  # bytes that a rank's GPU holds beside tensors
    checkpoint: int  # bytes of one checkpoint
    num_checkpoints: int  # that are on the disk at a time at most
    exports: int  # bytes of the exported models

    def device_peak(self, phase: str | None = None) -> Peak:
        """Where a rank's device holds most tensors, in one phase or in all."""
        moments = [one for one in self.moments if phase in (None, one.phase)]
        return _peak((one, one.device_bytes, one.device) for one in moments)

    @property
    def running_peak(self) -> int:
        """The most tensors on a rank's device in a step: neither loading nor saving."""
        return max(one.device_bytes for one in self.moments if one.phase not in ("load", "save"))

    def gpu_bytes(self, phase: str | None = None) -> int:
        """The most that a GPU holds, context included."""
        return self.device_peak(phase).bytes + self.context

    def host_peak(self) -> Peak:
        """Where the host's memory of one machine is fullest: with all its ranks, their libraries among them."""
        return _peak((one, self._host_bytes(one), (*self._on_host(one), *one.first)) for one in self.moments)

    def rank_peak(self) -> int:
        """The most that the process of rank 0 holds where there is no GPU, its libraries among it."""
        return LIBRARIES + max(total(self._on_host(one)) + total(one.first) for one in self.moments)

    def _on_host(self, moment: Moment) -> tuple[Item, ...]:
        return moment.host if self.place.on_gpu else (*moment.device, *moment.host)

    def _host_bytes(self, moment: Moment) -> int:
        return self.place.node_ranks * (total(self._on_host(moment)) + LIBRARIES) + total(moment.first)

    @property
    def disk_bytes(self) -> int:
        """What the run folder takes at most."""
        return self.num_checkpoints * self.checkpoint + self.exports

    @property
    def phases(self) -> list[str]:
        """The phases that the run has, in order."""
        return [phase for phase in PHASES if any(one.phase == phase for one in self.moments)]

    def as_json(self) -> dict[str, Any]:
        """Return all figures, in bytes."""
        device, host = self.device_peak(), self.host_peak()
        return {
            "ranks": self.place.num_ranks,
            "ranks_a_node": self.place.node_ranks,
            "device": "gpu" if self.place.on_gpu else "cpu",
            "context": self.context,
            "peak": {**_peak_json(device), "with_context": device.bytes + self.context},
            "host_peak": {**_peak_json(host), "libraries_a_rank": LIBRARIES},
            "disk": {"checkpoint": self.checkpoint, "checkpoints": self.num_checkpoints, "exports": self.exports},
            "moments": [
                {
                    "phase": one.phase,
                    "moment": one.name,
                    "device": _items_json(one.device),
                    "device_total": one.device_bytes,
                    "host": _items_json(one.host),
                    "host_of_rank_0": _items_json(one.first),
                }
                for one in self.moments
            ],
        }


def total(items: Iterable[Item]) -> int:
    """Add up bytes."""
    return sum(item.bytes for item in items)


def _peak(moments: Iterator[tuple[Moment, int, tuple[Item, ...]]] | Iterable[Any]) -> Peak:
    moment, size, items = max(moments, key=lambda one: one[1])
    return Peak(moment, size, max(items, key=lambda item: item.bytes, default=Item("", "nothing", 0)))


def _peak_json(peak: Peak) -> dict[str, Any]:
    largest = peak.largest
    return {
        "phase": peak.moment.phase,
        "moment": peak.moment.name,
        "bytes": peak.bytes,
        "largest": {"model": largest.model, "what": largest.what, "bytes": largest.bytes},
    }


def _items_json(items: Iterable[Item]) -> list[dict[str, Any]]:
    return [{"model": item.model, "what": item.what, "bytes": item.bytes} for item in items]
