"""Rows of .jsonl and .json files, each with its place; a row that is no JSON object becomes a BadRow.

`datasets` (5.2.0) gives up at the first bad line without its number, makes a missing column a null, and turns texts
that look like dates into dates.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_cli.data.rows import BadRow, Row


def read_jsonl(file: Path, name: str) -> list[tuple[str, Row | BadRow]]:
    """Return (`name`:line, row) of every line that is not blank."""
    with file.open("rb") as lines:
        return [(f"{name}:{number}", _row(line)) for number, line in enumerate(lines, 1) if line.strip()]


def read_json(file: Path, name: str) -> list[tuple[str, Row | BadRow]]:
    """Return (`name`: row number, row) of a JSON array or a single object; other files are read line by line.

    Raises ValueError or RecursionError for a broken array.
    """
    text = _text(file.read_bytes())
    try:
        whole = _loads(text)
    except ValueError:
        if text.lstrip().startswith("["):
            raise
        return read_jsonl(file, name)
    values = whole if isinstance(whole, list) else [whole]
    return [(f"{name}: row {number}", _checked(value)) for number, value in enumerate(values, 1)]


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
        names = [name for name, _ in pairs]
        raise ValueError(f"key '{next(name for name in names if names.count(name) > 1)}' stands there twice")
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
