"""Rows that cannot be used: what is wrong with one, and one report of all those of a source."""

from __future__ import annotations

from collections import Counter
from math import isfinite
from typing import Any

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import RowPolicy
from rlhf_cli.system.text import one_line

Row = dict[str, Any]
NUM_SHOWN = 20
_MAX_LINE = 200  # characters; a message quotes a value, however long it is


class BadRow(InputError):
    """A row that cannot be used: its field ("" for the row itself) and the reason.

    With the policy `drop`, which the given option sets, the row is left out and counted.
    """

    def __init__(self, field: str, reason: str, policy: RowPolicy = RowPolicy.error, option: str = "") -> None:
        self.reason = reason
        self.policy = policy
        setting = f", and {option}={policy.value}" if option else ""
        super().__init__(shorten(f"{field}: {reason}{setting}" if field else f"{reason}{setting}"))


class Rejected:
    """The bad rows of one source."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()  # reason -> rows
        self._num_refused = 0
        self._shown: list[tuple[str, str]] = []  # (place, problem) of the first refused rows
        self._problems: set[str] = set()  # at most two different ones

    def add(self, place: str, bad: BadRow) -> None:
        """Count a bad row; remember it unless its policy is to drop it."""
        if bad.policy is RowPolicy.drop:
            self.dropped[bad.reason] += 1
            return
        self._num_refused += 1
        if len(self._problems) < 2:
            self._problems.add(str(bad))
        if len(self._shown) < NUM_SHOWN:
            self._shown.append((place, str(bad)))

    def raise_if_refused(self, source: str, num_rows: int) -> None:
        """Raise InputError with the first 20 refused rows and their number, if there are any."""
        number = self._num_refused
        if not number:
            return
        if number == num_rows > 1 and len(self._problems) == 1:
            raise InputError(f"{source}: all {num_rows} rows: {self._shown[0][1]}")
        lines = [f"{source}: {number} bad row{'s' if number > 1 else ''} of {num_rows}"]
        lines += [f"  {shorten(place)}: {problem}" for place, problem in self._shown]
        if number > NUM_SHOWN:
            lines.append(f"  … and {number - NUM_SHOWN} more; {number} bad rows of {num_rows}")
        raise InputError("\n".join(lines))


def column(row: Row, name: str) -> Any:
    """Return a column of a row; raise BadRow where it is missing."""
    if name not in row:
        raise BadRow(name, "missing")
    return row[name]


def json_value(value: Any) -> Any:
    """Return a value that JSON can hold: NaN and infinity become None, dates and bytes text."""
    if isinstance(value, dict):
        return {str(name): json_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def shorten(text: str) -> str:
    """Return text from data as one short line without control characters."""
    line = one_line(text, _MAX_LINE + 1)
    return line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]}…"
