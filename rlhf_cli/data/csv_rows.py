"""Rows of .csv files with their places. A row that does not fit the header becomes a BadRow.

`datasets` (5.2.0) shifts columns where the first row has a field too many, renames duplicate
columns, and turns texts that look like numbers into numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from rlhf_cli.config.errors import InputError
from rlhf_cli.data.bad_rows import BadRow, Row
from rlhf_cli.system.text import one_line

MAX_ROW_CHARS = 64 << 20  # an open quote makes one row of everything that follows
_MAX_COLUMNS = 1000


def read_csv(file: Path, name: str) -> Iterator[tuple[str, Row | BadRow]]:
    """Yield (`name`: row number, row) for every row that is not blank.

    Cells are texts, or None where empty. Raises InputError for a header without clear column names
    and for a row of over 64 Mi characters, UnicodeDecodeError for data that is not UTF-8.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_CHARS))
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = _parse(text, file)
        header = next(rows, [])
        if isinstance(header, BadRow):
            raise InputError(f"{file}: the header is {header}")
        _check_header(header, file)
        for number, fields in enumerate(rows, 1):
            if not isinstance(fields, BadRow) and len(fields) != len(header):
                count = f"{len(fields)} field{'s' if len(fields) > 1 else ''}"
                fields = BadRow("", f"{count}, wanted {len(header)} as in the header")
            if isinstance(fields, BadRow):
                yield f"{name}: row {number}", fields
            else:
                yield f"{name}: row {number}", {key: cell or None for key, cell in zip(header, fields, strict=True)}


def _parse(text: TextIO, file: Path) -> Iterator[list[str] | BadRow]:
    """Yield the fields of each row that is not blank, the header's first."""
    num_left = MAX_ROW_CHARS  # characters that the current row may still have

    def lines() -> Iterator[str]:
        nonlocal num_left
        number = 0
        while line := text.readline(num_left + 1):
            number += 1
            num_left -= len(line)
            if num_left < 0:
                what = f"a row that reaches line {number} is longer than {MAX_ROW_CHARS >> 20} Mi characters"
                raise InputError(f"{file}: {what}; is a quote left open?")
            yield line

    reader = csv.reader(lines(), strict=True)
    while True:
        num_left = MAX_ROW_CHARS
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow("", f"not CSV: {error}")  # the reader continues with the next line
            continue
        if fields and not (len(fields) == 1 and fields[0].isspace()):
            yield fields


def _check_header(header: list[str], file: Path) -> None:
    if len(header) > _MAX_COLUMNS:
        raise InputError(f"{file}: {len(header)} columns; wanted at most {_MAX_COLUMNS}, or a .jsonl file")
    for number, column in enumerate(header, 1):
        if not column.strip():
            raise InputError(f"{file}: column {number} of {len(header)} has no name; name it in the first line")
        if column in header[: number - 1]:
            name = one_line(column, 100)
            raise InputError(f"{file}: two columns have the name '{name}'; rename one in the first line")
