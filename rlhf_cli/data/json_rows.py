"""Rows of .jsonl and .json files with their places. A row that is no object becomes a BadRow.

`datasets` (5.2.0) stops at the first bad line without its number, turns a missing column into a
null, and turns texts that look like dates into dates.
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

import pyarrow as pa

from rlhf_cli.data.bad_rows import BadRow, Row

MAX_LINE_BYTES = 64 << 20  # a longer row is bad, and is skipped in blocks
MAX_ARRAY_BYTES = 1 << 30  # of a .json file, which is read at once


def open_rows(file: Path) -> IO[bytes]:
    """Open a file for reading; decompress it if its name ends in .gz, .bz2, .xz or .zst."""
    match file.suffix:
        case ".gz":
            return cast(IO[bytes], gzip.open(file))
        case ".bz2":
            return bz2.open(file)
        case ".xz":
            return lzma.open(file)
        case ".zst":
            return io.BufferedReader(pa.input_stream(str(file), compression="zstd"), 1 << 20)
        case _:
            return file.open("rb")


def read_jsonl(file: Path, name: str) -> Iterator[tuple[str, Row | BadRow]]:
    """Yield (`name`:line, row) for every line that is not blank, one at a time."""
    with open_rows(file) as lines:
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = lines.readline(1 << 20)
                yield f"{name}:{number}", BadRow("", f"longer than {MAX_LINE_BYTES >> 20} MiB")
            elif line.strip():
                yield f"{name}:{number}", _parse_line(line)


def read_json(file: Path, name: str) -> Iterator[tuple[str, Row | BadRow]]:
    """Yield (`name`: row number, row) for a JSON array or object; read other files by line.

    Raises ValueError or RecursionError for a broken array, and ValueError for one of over 1 GiB.
    """
    with open_rows(file) as opened:
        data = opened.read(MAX_ARRAY_BYTES + 1)
    if len(data) > MAX_ARRAY_BYTES:
        raise ValueError(f"a .json file of over {MAX_ARRAY_BYTES >> 30} GiB; write one row per line to a .jsonl file")
    text = _decode(data)
    try:
        values = json.loads(text, object_pairs_hook=_object)
    except ValueError:
        if text.lstrip().startswith("["):
            raise
        yield from read_jsonl(file, name)
        return
    for number, value in enumerate(values if isinstance(values, list) else [values], 1):
        yield f"{name}: row {number}", _check(value)


def _parse_line(line: bytes) -> Row | BadRow:
    try:
        return _check(json.loads(_decode(line.rstrip()), object_pairs_hook=_object))
    except json.JSONDecodeError as error:
        return BadRow("", f"not JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:
        return BadRow("", f"not JSON: {error}")


def _decode(data: bytes) -> str:
    """Return data as text. Bytes that are not UTF-8 become surrogates, which `_check` finds."""
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in pairs:
        if name in row:
            raise ValueError(f"key '{name}' occurs twice")
        row[name] = value
    return row


def _check(value: Any) -> Row | BadRow:
    if not isinstance(value, dict):
        return BadRow("", f"wanted an object, {{...}}, got {type(value).__name__}")
    for name, content in value.items():
        try:
            json.dumps({name: content}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return BadRow(name, "not UTF-8 text")
    return value
