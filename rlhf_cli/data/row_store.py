"""Rows in Arrow files: written one by one, and read one by one through a memory map.

A file is an Arrow IPC stream, followed by a SHA-256 if the cache keeps the file. Each record holds
its lists of token ids in one column, all other fields as JSON, and a checksum. Memory holds a few
bytes per row.
"""

from __future__ import annotations

import json
import os
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, Self, TypeVar, overload

import numpy as np
import pyarrow as pa

from rlhf_cli.config.errors import InputError

Ids = tuple[int, ...]
DIGEST_BYTES = 32  # of a SHA-256
_SCHEMA = pa.schema({"ids": pa.list_(pa.int32()), "fields": pa.string(), "checksum": pa.uint32()})
_BATCH_ROWS = 256  # rows that wait in memory until they are written


class Storable(Protocol):
    """A row that can be written to a file and read back."""

    def to_record(self) -> tuple[list[Ids], list[Any]]:
        """Return its lists of token ids, and its other fields as JSON values."""

    @classmethod
    def from_record(cls, ids: list[Ids], fields: list[Any]) -> Self:
        """Return the row of a record."""


Example = TypeVar("Example", bound=Storable)
Item = TypeVar("Item")
ItemOut = TypeVar("ItemOut", covariant=True)


class RowWriter:
    """Writes rows to an open file as an Arrow stream."""

    def __init__(self, file: BinaryIO) -> None:
        self._writer = pa.ipc.new_stream(file, _SCHEMA)
        self._pending: list[tuple[Any, str, int]] = []

    def append(self, row: Storable) -> None:
        """Write one row; raise OSError where the file cannot be written."""
        lists, fields = row.to_record()
        ids = np.fromiter(chain.from_iterable(lists), np.int32)
        text = json.dumps([[len(one) for one in lists], fields])
        self._pending.append((ids, text, _checksum(ids, text)))
        if len(self._pending) == _BATCH_ROWS:
            self._write_batch({})

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the rows that still wait, and metadata about all of them."""
        self._write_batch(metadata)
        self._writer.close()

    def _write_batch(self, metadata: Mapping[str, str]) -> None:
        columns = zip(*self._pending, strict=True) if self._pending else ([], [], [])
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=_SCHEMA), metadata)
        self._pending = []


def _checksum(ids: Any, text: str) -> int:
    return zlib.crc32(text.encode(), zlib.crc32(ids))


class StoredRows(Generic[Example]):
    """The rows of a file. It stays mapped, so others may delete or replace the file meanwhile."""

    def __init__(self, descriptor: int, kind: type[Example], path: Path | None) -> None:
        """Map an open file; raise ValueError where it holds no Arrow stream.

        path: where other processes of this machine find the file; None: nowhere.
        """
        self._kind = kind
        self._path = path
        self._content = mmap(descriptor, 0, access=ACCESS_READ)
        stream = pa.ipc.open_stream(pa.py_buffer(self._content))
        batches = list(stream.iter_batches_with_custom_metadata())
        self.metadata: dict[bytes, bytes] = dict(batches[-1].custom_metadata or {})
        table = pa.Table.from_batches([one.batch for one in batches])
        self._ids, self._fields, self._checksums = table.columns

    @property
    def identity(self) -> tuple[int, bytes]:
        """The size and the SHA-256 at the end, which no file with other content has."""
        return len(self._content), self._content[-DIGEST_BYTES:]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int, /) -> Example:
        ids, text = self._ids[index].values.to_numpy(), self._fields[index].as_py()
        if self._checksums[index].as_py() != _checksum(ids, text):
            raise InputError("data.cache: a file was changed while the run reads it; start again with run.resume=true")
        lengths, fields = json.loads(text)
        tokens, ends = ids.tolist(), list(accumulate(lengths))
        return self._kind.from_record([tuple(tokens[e - n : e]) for n, e in zip(lengths, ends, strict=True)], fields)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a path for a rank on this machine, as a list for one on another machine."""
        is_local = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
        if self._path is None or not is_local:
            return list, ([self[index] for index in range(len(self))],)
        return _reopen, (self._path, self.identity, self._kind)


def _reopen(path: Path, identity: tuple[int, bytes], kind: type[Example]) -> StoredRows[Example]:
    """Open a file that another process has verified; raise InputError if it has changed."""
    try:
        with path.open("rb") as file:
            rows = StoredRows(file.fileno(), kind, path)
    except (OSError, ValueError) as error:
        raise InputError(f"data.cache: {path} went away while the run started; start it again") from error
    if rows.identity != identity:
        raise InputError(f"data.cache: {path} was replaced while the run started; start it again")
    return rows


class IndexedRows(Protocol[ItemOut]):
    """Items with a length and an index; what `Rows` takes."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> ItemOut: ...


class Rows(Sequence[Item]):
    """Items of several parts in a given order. Equal to any sequence of equal items."""

    def __init__(self, parts: Iterable[IndexedRows[Item]], indices: Sequence[int] | None = None) -> None:
        """Take the items at `indices`, counted over all parts; None takes all of them."""
        self._parts = tuple(parts)
        self._ends = list(accumulate(map(len, self._parts)))
        total = self._ends[-1] if self._ends else 0
        self._indices: Sequence[int] = range(total) if indices is None else array("q", indices)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[one] for one in range(len(self))[index]]
        position = self._indices[index]
        part = bisect_right(self._ends, position)
        return self._parts[part][position - (self._ends[part - 1] if part else 0)]

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def select(self, indices: Iterable[int]) -> Rows[Item]:
        """Return the items at some indices, in that order."""
        return Rows(self._parts, array("q", (self._indices[index] for index in indices)))


def sorted_rows(rows: Sequence[Item], key: Callable[[Item], Any]) -> Sequence[Item]:
    """Return rows in ascending order of a key; rows with equal keys keep their order."""
    keys = [key(row) for row in rows]
    return Rows([rows], sorted(range(len(keys)), key=keys.__getitem__))
