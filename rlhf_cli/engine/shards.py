"""Sharded tensors in safetensors files: each rank writes its parts, any number of ranks reads them back.

DeepSpeed's own files are pickles, which run code when they are opened, and go back on the same number of ranks only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf_cli.config.errors import CheckpointError
from rlhf_cli.system.watchdog import PROGRESS

FILE_BYTES = 2**30  # safetensors copies what it writes: a file's bytes are the memory that saving takes


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


class ShardReader:
    """Reads the shards that `write_shards` left in a folder, as slices of the whole tensors."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._files: dict[str, list[tuple[int, Any]]] = {}  # name -> (rank, file)

    def __enter__(self) -> ShardReader:
        for path in sorted(self._folder.glob("rank*.safetensors")):
            match = re.match(r"rank(\d+)-", path.name)
            assert match is not None
            file = self._stack.enter_context(safe_open(path, "pt"))
            for name in file.keys():  # noqa: SIM118  # not a mapping
                self._files.setdefault(name, []).append((int(match[1]), file))
        for parts in self._files.values():
            parts.sort(key=lambda part: part[0])
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str, start: int, size: int) -> Tensor:
        """Return elements [start, start + size) of a tensor joined from all shards; zeros where it ends before."""
        if name not in self._files:
            raise CheckpointError(f"{self._folder}: holds no {name}; it is of another model or other options")
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
