"""Sharded tensors in safetensors files: each rank writes its parts, and any number of ranks can read them.

DeepSpeed's files are pickles, which can run code when they are opened, and need the same number of ranks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf_cli.config.errors import CheckpointError
from rlhf_cli.system.watchdog import PROGRESS

FILE_BYTES = 2**30  # safetensors copies what it writes, so saving needs this much memory


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, rank: int) -> None:
    """Write this rank's flat shards to rank<rank>-<number>.safetensors files of about FILE_BYTES."""
    pending: dict[str, Tensor] = {}
    number = 0
    for name, tensor in tensors:
        PROGRESS.tick()
        pending[name] = tensor.detach().cpu().contiguous()
        if sum(one.nbytes for one in pending.values()) >= FILE_BYTES:
            save_file(pending, folder / f"rank{rank}-{number}.safetensors")
            pending, number = {}, number + 1
    if pending:
        save_file(pending, folder / f"rank{rank}-{number}.safetensors")


@contextmanager
def open_shards(folder: Path) -> Iterator[ShardReader]:
    """Open the files that `write_shards` wrote to a folder, for reading slices of the complete tensors."""
    files: dict[str, list[tuple[int, Any]]] = {}  # name -> [(rank, file)]
    with ExitStack() as stack:
        for path in sorted(folder.glob("rank*.safetensors")):
            match = re.match(r"rank(\d+)-", path.name)
            assert match is not None
            file = stack.enter_context(safe_open(path, "pt"))
            for name in file.keys():  # noqa: SIM118  # not a mapping
                files.setdefault(name, []).append((int(match[1]), file))
        for parts in files.values():
            parts.sort(key=lambda part: part[0])
        yield ShardReader(folder, files)


@dataclass(frozen=True)
class ShardReader:
    """Reads slices of complete tensors from the open files of a folder."""

    folder: Path
    _files: dict[str, list[tuple[int, Any]]]

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str, start: int, size: int) -> Tensor:
        """Return elements [start, start + size) of the tensor joined from all shards, padded with zeros at its end."""
        if name not in self._files:
            raise CheckpointError(
                f"{self.folder}: no tensor {name}; the checkpoint is of another model or other options"
            )
        pieces, offset = [], 0
        for _, file in self._files[name]:
            part = file.get_slice(name)
            (length,) = part.get_shape()
            low, high = max(start - offset, 0), min(start + size - offset, length)
            if low < high:
                pieces.append(part[low:high])
            offset += length
        found = torch.cat(pieces) if pieces else torch.zeros(0)
        return torch.nn.functional.pad(found, (0, size - found.numel()))
