"""Examples in a file, read one by one where they are asked for: memory holds eight bytes an example.

A record is its lists of ids and all else as JSON: CRC-32 of what follows, uint32 number of lists, uint32 length of
each, int32 ids, JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
import zlib
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from heapq import merge
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar, overload

import numpy as np

from rlhf_cli.config.errors import DiskError, InputError
from rlhf_cli.system.text import one_line

Ids = tuple[int, ...]
DIGEST_BYTES = 32  # a SHA-256 over what follows, at the head of a file that is kept
_CRC_BYTES = 4


class Storable(Protocol):
    """An example that can be written down and read back."""

    def parts(self) -> tuple[list[Ids], list[Any]]:
        """Return its lists of ids, and the rest as JSON can hold it."""

    @classmethod
    def of_parts(cls, ids: list[Ids], rest: list[Any]) -> Self:
        """Return the example that has these parts."""


Example = TypeVar("Example", bound=Storable)
Item = TypeVar("Item")


def packed(example: Storable) -> bytes:
    """Return the record of an example."""
    lists, rest = example.parts()
    head = np.array([len(lists), *map(len, lists)], np.uint32).tobytes()
    ids = b"".join(np.array(ids, np.int32).tobytes() for ids in lists)
    content = head + ids + json.dumps(rest).encode()
    return zlib.crc32(content).to_bytes(_CRC_BYTES, "little") + content


def unpacked(record: bytes, kind: type[Example]) -> Example:
    """Return the example of a record; raise InputError where it is not what was written."""
    if record[:_CRC_BYTES] != zlib.crc32(record[_CRC_BYTES:]).to_bytes(_CRC_BYTES, "little"):
        raise InputError("data.cache: a file was changed while the run reads it; start again, run.resume=true")
    number = int(np.frombuffer(record, np.uint32, 1, _CRC_BYTES)[0])
    lengths = np.frombuffer(record, np.uint32, number, _CRC_BYTES + 4).tolist()
    start = _CRC_BYTES + 4 * (1 + number)
    lists = []
    for length in lengths:
        lists.append(tuple(np.frombuffer(record, np.int32, length, start).tolist()))
        start += 4 * length
    return kind.of_parts(lists, json.loads(record[start:]))


class RowFile:
    """An open file, closed when nobody holds it any more; others may delete it meanwhile."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size  # what is written comes behind it
        self.close = weakref.finalize(self, os.close, descriptor)

    @classmethod
    def opened(cls, path: Path) -> RowFile:
        """Open a file for reading; raise OSError where that cannot be."""
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    @property
    def size(self) -> int:
        """How many bytes are there."""
        return self._size

    def identity(self) -> tuple[bytes, int]:
        """Return what a file of other content would not have: its size, and the digest that files of the cache begin
        with. Another run may have put the same content in its place meanwhile.
        """
        return self.read(0, DIGEST_BYTES), self._size

    def read(self, start: int, size: int) -> bytes:
        """Return bytes from a place; fewer than `size` at the end alone."""
        return os.pread(self._descriptor, size, start)

    def append(self, content: bytes) -> None:
        """Write behind all that is there; raise OSError, and leave the size, where that cannot be."""
        view, place = memoryview(content), self._size
        while view:
            written = os.pwrite(self._descriptor, view, place)
            view, place = view[written:], place + written
        self._size = place

    def settle(self, head: bytes) -> None:
        """Write the first bytes, and wait until all are on the disk."""
        os.pwrite(self._descriptor, head, 0)
        os.fsync(self._descriptor)


class _Listed(Sequence[Item]):
    """A sequence that is equal to any other one of the same items, and whose slices are lists."""

    @abstractmethod
    def _at(self, place: int) -> Item:
        """Return the item at a place between 0 and the length."""

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        if isinstance(place, slice):
            return [self._at(one) for one in range(len(self))[place]]
        return self._at(range(len(self))[place])

    def __iter__(self) -> Iterator[Item]:
        return (self._at(place) for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


class Stored(_Listed[Example], Generic[Example]):
    """The examples of a file, which stays open; others may delete it meanwhile.

    path: where other processes of this machine find it; None: nowhere.
    """

    def __init__(self, file: RowFile, offsets: array[int], kind: type[Example], path: Path | None) -> None:
        self._file = file
        self._offsets = offsets  # of the records, and of the end of the last one
        self._kind = kind
        self._path = path

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def _at(self, place: int) -> Example:
        start, end = self._offsets[place], self._offsets[place + 1]
        return unpacked(self._file.read(start, end - start), self._kind)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a rank of this machine as a path, to one of another machine as a list."""
        several = os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE")
        if self._path is None or several:
            return list, (list(self),)
        return _opened, (self._path, self._file.identity(), self._offsets, self._kind)


def _opened(path: Path, identity: tuple[bytes, int], offsets: array[int], kind: type[Example]) -> Stored[Example]:
    """Open a file that another process has found to be whole; raise InputError where it is another one by now."""
    try:
        file = RowFile.opened(path)
    except OSError as error:
        raise InputError(f"data.cache: {path} went away while the run started; start it again") from error
    if file.identity() != identity:
        raise InputError(f"data.cache: {path} was replaced while the run started; start it again")
    return Stored(file, offsets, kind, path)


class Rows(_Listed[Item]):
    """Some of the items of several sequences, in an order of their own."""

    def __init__(self, parts: Sequence[Sequence[Item]], places: Sequence[int] | None = None) -> None:
        """Take the items at these places of all parts one after the other; None: all."""
        self._parts = tuple(parts)
        self._ends = list(accumulate(map(len, self._parts)))
        total = self._ends[-1] if self._ends else 0
        self._places: Sequence[int] = range(total) if places is None else array("q", places)

    def __len__(self) -> int:
        return len(self._places)

    def _at(self, place: int) -> Item:
        at = self._places[place]
        part = bisect_right(self._ends, at)
        return self._parts[part][at - (self._ends[part - 1] if part else 0)]

    def at(self, places: Sequence[int]) -> Rows[Item]:
        """Return the items at some places, in that order."""
        return Rows(self._parts, array("q", (self._places[place] for place in places)))


def ordered(rows: Sequence[Item], key: Callable[[Item], Any]) -> Sequence[Item]:
    """Return rows in the order of a key; those with equal keys stay as they stand."""
    keys = [key(row) for row in rows]
    return Rows([rows], sorted(range(len(keys)), key=keys.__getitem__))


def number_by_key(keys: Iterable[str], run_bytes: int = 64 << 20) -> tuple[array[int], int]:
    """Return for every key its place among the distinct ones in order, and how many distinct ones there are.

    Keys (without line ends) are sorted in runs of about run_bytes, which are kept in temporary files and merged.
    """
    runs: list[Iterable[tuple[str, int]]] = []
    run: list[tuple[str, int]] = []
    held, total = 0, 0
    for total, key in enumerate(keys, 1):
        run.append((key, total - 1))
        held += len(key) + 100
        if held > run_bytes:
            runs.append(_spilled(sorted(run)))
            run, held = [], 0
    numbers = array("q", bytes(8 * total))
    number, last = -1, None
    for key, place in merge(*runs, sorted(run)):
        number += key != last
        numbers[place], last = number, key
    return numbers, number + 1


@contextmanager
def temporary_room() -> Iterator[None]:
    """Raise DiskError where a temporary file cannot be written inside."""
    try:
        yield
    except OSError as error:
        folder, reason = tempfile.gettempdir(), one_line(error, 200)
        raise DiskError(f"cannot write a temporary file in {folder} ({reason}): make room, or set TMPDIR") from error


def _spilled(run: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Write a sorted run to a temporary file, and return what reads it back."""
    with temporary_room():
        file = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n")  # noqa: SIM115 - read_back closes it
        file.writelines(f"{place} {key}\n" for key, place in run)
        file.seek(0)

    def read_back() -> Iterator[tuple[str, int]]:
        with file:
            for line in file:
                place, _, key = line.rstrip("\n").partition(" ")
                yield key, int(place)

    return read_back()


class Spool(Generic[Example]):
    """Examples that are written to a file one by one; where that fails, memory holds them."""

    def __init__(self, file: RowFile | None, kind: type[Example]) -> None:
        """Begin behind what stands in the file; None: without one."""
        self.failed: OSError | None = None  # why the file is not whole
        self._file = file
        self._kind = kind
        self._held: list[Example] = []
        self._offsets = array("q", [0 if file is None else file.size])

    def append(self, example: Example) -> None:
        """Keep one more."""
        if self._file is None:
            self._held.append(example)
            return
        record = packed(example)
        try:
            self._file.append(record)
        except OSError as error:
            self.failed = error
            self._held = [*self.examples(), example]
            self._file = None
        else:
            self._offsets.append(self._offsets[-1] + len(record))

    def examples(self, path: Path | None = None) -> Sequence[Example]:
        """Return all of them; path: where the file stands."""
        return self._held if self._file is None else Stored(self._file, self._offsets, self._kind, path)

    @property
    def offsets(self) -> array[int]:
        """Where the records begin in the file, and where the last one ends."""
        return self._offsets
