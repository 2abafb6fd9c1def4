"""Rows that cannot be used: what is wrong with one, and how all those of a source are told at once."""

from __future__ import annotations

from collections import Counter
from math import isfinite
from typing import Any

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import RowPolicy
from rlhf_cli.system.text import one_line

Row = dict[str, Any]
NUM_SHOWN = 20
_MAX_COLUMNS = 100  # that are remembered, to be told; rows of a broken file may all have others
_MAX_LINE = 200  # characters; a message quotes what it found, however long that is


class BadRow(InputError):
    """A row that cannot be used: its field, or "" for the row as a whole, and the reason.

    With policy `drop`, that of the given option, the row is left out and counted.
    """

    def __init__(self, field: str, reason: str, policy: RowPolicy = RowPolicy.error, option: str = "") -> None:
        self.reason = reason
        self.policy = policy
        asked = f", and {option}={policy.value}" if option else ""
        super().__init__(_harmless(f"{field}: {reason}{asked}" if field else f"{reason}{asked}"))


class Rejected:
    """The bad rows of one source."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()  # reason -> rows
        self.refused: list[tuple[str, str]] = []  # (place, what is wrong there), of the first of them
        self.num_refused = 0
        self._are_alike = True

    def add(self, place: str, bad: BadRow) -> None:
        """Count a row that its policy drops, remember one that must not be."""
        if bad.policy is RowPolicy.drop:
            self.dropped[bad.reason] += 1
        else:
            what = str(bad)
            self.num_refused += 1
            self._are_alike &= not self.refused or what == self.refused[0][1]
            if len(self.refused) < NUM_SHOWN:
                self.refused.append((place, what))

    def raise_if_refused(self, source: str, num_rows: int) -> None:
        """Raise one InputError that shows the first 20 refused rows and counts all; one line where all are alike."""
        if not self.refused:
            return
        num = self.num_refused
        if num == num_rows > 1 and self._are_alike:
            raise InputError(f"{source}: all {num_rows} rows: {self.refused[0][1]}")
        lines = [f"{source}: {num} bad row{'s' if num > 1 else ''} of {num_rows}"]
        lines += [f"  {_harmless(place)}: {what}" for place, what in self.refused]
        if num > NUM_SHOWN:
            lines.append(f"  … and {num - NUM_SHOWN} more; {num} bad rows of {num_rows}")
        raise InputError("\n".join(lines))


def summary(source: str, kept: int, dropped: dict[str, int], others: int = 0, row_format: str = "columns") -> str:
    """One line: `pairs.jsonl: 812 rows kept, 3 dropped (2 too long, 1 equal), 90 left out by the filter; read as hh`.

    dropped: reason -> rows; others: rows that the filter leaves out.
    """
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    line = f"{source}: {kept} rows kept, {sum(dropped.values())} dropped{f' ({reasons})' if reasons else ''}"
    line += f", {others} left out by the filter" if others else ""
    return line if row_format == "columns" else f"{line}; read as {row_format}"


def column(row: Row, name: str) -> Any:
    """Return a column of a row; raise BadRow where it is missing."""
    if name not in row:
        raise BadRow(name, "missing")
    return row[name]


def json_value(value: Any) -> Any:
    """Return a value of a row as JSON can hold it: what it has no word for (dates, bytes) as text, NaN as None."""
    if isinstance(value, dict):
        return {str(name): json_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


class Columns:
    """The columns that the rows of a source have, and those that are wanted of them."""

    def __init__(self, wanted: dict[str, str]) -> None:
        """wanted: column -> the option that names it."""
        self._missing = dict(wanted)
        self._there: dict[str, None] = {}

    def see(self, row: Row) -> None:
        """Look at one row."""
        for name in [name for name in self._missing if name in row]:
            del self._missing[name]
        if len(self._there) < _MAX_COLUMNS:
            self._there.update(dict.fromkeys(row))

    def check(self, source: str) -> None:
        """Raise InputError where no row at all has a wanted column."""
        for name, option in self._missing.items():
            if self._there:
                there = ", ".join(self._there)
                raise InputError(_harmless(f"{source}: no column '{name}'; there are: {there}; set {option}"))


def _harmless(text: str) -> str:
    """Return text from data as one short line without control characters."""
    line = one_line(text, _MAX_LINE + 1)
    return line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]}…"
