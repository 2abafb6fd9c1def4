"""Rows of .jsonl and .json files, each with its place; a row that is no JSON object becomes a BadRow.

`datasets` (5.2.0) gives up at the first bad line without its number, makes a missing column a null, and turns texts
that look like dates into dates.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from rlhf_cli.config.errors import InputError
from rlhf_cli.data.bad_rows import BadRow, Row

MAX_LINE_BYTES = 64 << 20  # of one row; a longer one is bad, and is passed over in blocks
MAX_ARRAY_BYTES = 1 << 30  # of a .json file, which is read whole


def open_rows(file: Path) -> IO[bytes]:
    """Open a file for reading, decompressed where its name ends in .gz, .bz2, .xz or .zst."""
    match file.suffix:
        case ".gz":
            return cast(IO[bytes], gzip.open(file))
        case ".bz2":
            return bz2.open(file)
        case ".xz":
            return lzma.open(file)
        case ".zst":
            return _zstandard(file)
        case _:
            return file.open("rb")


def _zstandard(file: Path) -> IO[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise InputError(f"{file}: .zst files need the package zstandard; pip install 'rlhf[zstd]'") from error
    return io.BufferedReader(_Frames(file, zstandard.ZstdDecompressor()), 1 << 20)


class _Frames(io.RawIOBase):
    """The content of all frames of a .zst file; zstandard's own reader (0.25) takes a file that was cut for whole."""

    def __init__(self, file: Path, zstd: Any) -> None:
        self._file = file.open("rb")
        self._zstd = zstd
        self._frame: Any = None  # the one that is being read
        self._compressed = b""
        self._content = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            self._compressed = self._compressed or self._file.read(1 << 14)  # which may hold a thousand times as much
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the file ends within a zstd frame")
                return 0
            self._frame = self._frame or self._zstd.decompressobj()
            self._content, self._compressed = self._frame.decompress(self._compressed), b""
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._content))
        buffer[:size], self._content = self._content[:size], self._content[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def read_jsonl(file: Path, name: str) -> Iterator[tuple[str, Row | BadRow]]:
    """Yield (`name`:line, row) of every line that is not blank, one at a time."""
    with open_rows(file) as lines:
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = lines.readline(1 << 20)
                yield f"{name}:{number}", BadRow("", f"longer than {MAX_LINE_BYTES >> 20} MiB")
            elif line.strip():
                yield f"{name}:{number}", _row(line)


def read_json(file: Path, name: str) -> Iterator[tuple[str, Row | BadRow]]:
    """Yield (`name`: row number, row) of a JSON array or a single object; other files are read line by line.

    Raises ValueError or RecursionError for a broken array, and ValueError for one of over 1 GiB.
    """
    with open_rows(file) as whole_file:
        data = whole_file.read(MAX_ARRAY_BYTES + 1)
    if len(data) > MAX_ARRAY_BYTES:
        raise ValueError(f"a .json file of over {MAX_ARRAY_BYTES >> 30} GiB; write one row a line to a .jsonl file")
    text = _text(data)
    try:
        whole = _loads(text)
    except ValueError:
        if text.lstrip().startswith("["):
            raise
        yield from read_jsonl(file, name)
        return
    values = whole if isinstance(whole, list) else [whole]
    for number, value in enumerate(values, 1):
        yield f"{name}: row {number}", _checked(value)


def _row(line: bytes) -> Row | BadRow:
    try:
        return _checked(_loads(_text(line.rstrip())))
    except json.JSONDecodeError as error:
        return BadRow("", f"not JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:
        return BadRow("", f"not JSON: {error}")


def _text(data: bytes) -> str:
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")  # _checked finds what was no UTF-8


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"key '{twice}' stands there twice")
    return row


def _checked(value: Any) -> Row | BadRow:
    if not isinstance(value, dict):
        return BadRow("", f"wanted an object, {{...}}, got {type(value).__name__}")
    for name, content in value.items():
        try:
            json.dumps({name: content}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return BadRow(name, "not UTF-8 text")
    return value
