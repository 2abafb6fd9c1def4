"""The peak memory of this process, since a restart of the measurement and in total."""

from __future__ import annotations

import re
import resource
from pathlib import Path

from rlhf_cli.engine.deepspeed_import import get_accelerator

_GIB_IN_KIB = 2**20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # of resident memory: man 5 proc


class PeakMemory:
    """On a GPU, the memory of tensors as torch's allocator counts it; otherwise resident memory.

    Resident memory includes freed tensors that the allocator keeps, so a phase shows at least what earlier phases have
    used. If the kernel does not allow its peak to be reset, the peak of a phase is that of the whole run.
    """

    def __init__(self) -> None:
        self._highest = 0.0

    def restart(self) -> None:
        """Start a new measurement for `since`."""
        self._highest = self.highest
        if _on_gpu():
            get_accelerator().reset_peak_memory_stats()
            return
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:  # not Linux, or forbidden
            return

    @property
    def since(self) -> float:
        """The peak since `restart`, in GiB."""
        if _on_gpu():
            return float(get_accelerator().max_memory_allocated()) / 2**30
        return _resident_peak()

    @property
    def highest(self) -> float:
        """The peak since the process started, in GiB."""
        return max(self._highest, self.since)


def _on_gpu() -> bool:
    return bool(get_accelerator().device_name() != "cpu")


def _resident_peak() -> float:
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
    except OSError:  # not Linux
        found = None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / _GIB_IN_KIB
