"""Rows of one answer and its score each, grouped by their prompt."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from rlhf_cli.config.sections import DataConfig, PreferenceDataConfig
from rlhf_cli.data.bad_rows import BadRow, Row, column, json_value
from rlhf_cli.data.ratings import SCORES, score_of
from rlhf_cli.data.row_store import temporary_room

_Places = Iterable[tuple[str, Row | BadRow]]


def grouped(rows: _Places, config: DataConfig) -> Iterator[tuple[str, Row | BadRow]]:
    """Yield one row a prompt, in the order of first appearance: its first row, with `completions` of all its rows.

    Of rows of prompts the first alone counts. A group has the place of its first row; bad rows come at once. Rows wait
    in a temporary file: memory holds about 200 bytes a prompt.
    """
    groups: dict[bytes, array[int]] = {}  # digest of the prompt -> (start, end) of its rows in the file
    with tempfile.TemporaryFile() as file:
        end = 0
        for place, row in rows:
            try:
                if isinstance(row, BadRow):
                    raise row
                key, kept = _of_row(row, config)
            except BadRow as bad:
                yield place, bad
                continue
            record = json.dumps([place, kept]).encode()
            with temporary_room():
                file.write(record)
            groups.setdefault(hashlib.sha256(key.encode()).digest()[:16], array("q")).extend((end, end + len(record)))
            end += len(record)
        with temporary_room():
            file.flush()
        for bounds in groups.values():
            pairs = zip(bounds[::2], bounds[1::2], strict=True)
            members = [json.loads(os.pread(file.fileno(), stop - start, start)) for start, stop in pairs]
            (place, first), answers = members[0], [row["completions"][0] for _, row in members]
            differs = next(
                (name for name in _alike(config) if len({repr(row.get(name)) for _, row in members}) > 1), None
            )
            if differs is not None:
                yield place, BadRow(differs, "the rows of one prompt differ in it; wanted one value for all of them")
            else:
                yield place, {**first, "completions": answers}


def _alike(config: DataConfig) -> list[str]:
    """The columns that say something of a prompt with all its answers."""
    named = (config.weight_column, config.category_column) if isinstance(config, PreferenceDataConfig) else ()
    return [name for name in named if name is not None]


def _of_row(row: Row, config: DataConfig) -> tuple[str, Row]:
    """Return the prompt of a row as a key, and the row with its answer among `completions`; raise BadRow."""
    plain: dict[str, Any] = json_value(row)
    key = json.dumps(column(plain, config.prompt_column), sort_keys=True)
    answer: Row = {}
    if isinstance(config, PreferenceDataConfig):
        response, score = column(plain, config.response_column), score_of(plain, config)
        answer = {config.response_column: response, config.score_column or SCORES[0]: score}
    return key, {**plain, "completions": [answer]}
