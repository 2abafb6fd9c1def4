"""Rows with one response and its score each, grouped by their prompt (the format `rated_rows`)."""

from __future__ import annotations

import hashlib
import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from typing import IO, Any

from rlhf_cli.config.errors import DiskError
from rlhf_cli.config.sections import DataConfig, PreferenceDataConfig
from rlhf_cli.data.bad_rows import BadRow, Row, column, json_value
from rlhf_cli.data.ratings import SCORES, score_of
from rlhf_cli.system.text import one_line


def grouped(rows: Iterable[tuple[str, Row | BadRow]], config: DataConfig) -> Iterator[tuple[str, Row | BadRow]]:
    """Yield one row per prompt: its first row, with the responses of all its rows in `completions`.

    Groups have the order and places of their first rows. Bad rows are yielded at once. Rows wait in
    a temporary file: memory holds about 200 bytes per prompt. Raises DiskError where that fails.
    """
    try:
        with tempfile.TemporaryFile() as file:
            yield from _grouped(rows, config, file)
    except OSError as error:
        folder, reason = tempfile.gettempdir(), one_line(error, 200)
        raise DiskError(
            f"cannot write a temporary file in {folder} ({reason}): free some space, or set TMPDIR"
        ) from error


def _grouped(
    rows: Iterable[tuple[str, Row | BadRow]], config: DataConfig, file: IO[bytes]
) -> Iterator[tuple[str, Row | BadRow]]:
    groups: dict[bytes, array[int]] = {}  # digest of the prompt -> where its rows start in the file
    end = 0
    for place, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            key, kept = _with_completion(row, config)
        except BadRow as bad:
            yield place, bad
            continue
        groups.setdefault(hashlib.sha256(key.encode()).digest()[:16], array("q")).append(end)
        end += file.write(json.dumps([place, kept]).encode() + b"\n")
    for starts in groups.values():
        members = []
        for start in starts:
            file.seek(start)
            members.append(json.loads(file.readline()))
        place, first = members[0]
        differing = [
            name for name in _prompt_columns(config) if any(row.get(name) != first.get(name) for _, row in members)
        ]
        if differing:
            yield (
                place,
                BadRow(differing[0], "the rows of one prompt differ here; wanted the same value in all of them"),
            )
        else:
            yield place, {**first, "completions": [row["completions"][0] for _, row in members]}


def _prompt_columns(config: DataConfig) -> list[str]:
    """Return the columns that describe a prompt with all its responses."""
    named = (config.weight_column, config.category_column) if isinstance(config, PreferenceDataConfig) else ()
    return [name for name in named if name is not None]


def _with_completion(row: Row, config: DataConfig) -> tuple[str, Row]:
    """Return the prompt of a row as a key, and the row with its response as a completion."""
    plain: dict[str, Any] = json_value(row)
    key = json.dumps(column(plain, config.prompt_column), sort_keys=True)
    completion: Row = {}
    if isinstance(config, PreferenceDataConfig):
        response, score = column(plain, config.response_column), score_of(plain, config)
        completion = {config.response_column: response, config.score_column or SCORES[0]: score}
    return key, {**plain, "completions": [completion]}
