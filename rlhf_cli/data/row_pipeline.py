"""From the rows of one source to what is made of them: filtered, told their format, converted or found bad."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, Generic, TypeVar

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DataConfig
from rlhf_cli.data.bad_rows import NUM_SHOWN, BadRow, Columns, Row, column
from rlhf_cli.data.detect_format import NUM_DETECTED, detect
from rlhf_cli.data.group_by_prompt import grouped
from rlhf_cli.data.read_rows import Place
from rlhf_cli.system.text import one_line

Made = TypeVar("Made")
# options and format of a source -> columns that its rows must have, each with the option that names it; and what makes
# something of a row, or raises BadRow
Prepare = Callable[[Any, Format], tuple[dict[str, str], Callable[[Row], Made]]]


class Conversion(Generic[Made]):
    """The rows of one file, each with what is made of it or what is wrong with it."""

    def __init__(self, rows: Filtered, label: str, options: DataConfig, prepare: Prepare[Made]) -> None:
        """Tell the format; raise InputError where that cannot be, or where the file cannot be read."""
        self.num_rows = 0
        self._label = label
        self.format, self._places = recognised(rows, label, options)
        wanted, self._convert = prepare(options, self.format)
        self._columns = Columns(wanted)

    def __iter__(self) -> Iterator[tuple[str, Made | BadRow]]:
        for place, row in self._places:
            self.num_rows += 1
            try:
                if isinstance(row, BadRow):
                    raise row
                self._columns.see(row)
                yield place, self._convert(row)
            except BadRow as bad:
                yield place, bad
            except RecursionError:
                yield place, BadRow("", "nested too deeply")

    def check(self) -> None:
        """Raise InputError where no row has a wanted column; once all were read."""
        self._columns.check(self._label)


def recognised(rows: Iterable[Place], label: str, options: DataConfig) -> tuple[Format, Iterator[Place]]:
    """Return the format of the rows of a source, told from the first of them if need be, and all rows.

    Rows that stand for one answer each come grouped by their prompt. Raises InputError for rows of several formats.
    """
    there = iter(rows)
    first = list(islice(there, NUM_DETECTED))
    row_format = options.format
    if row_format is Format.auto:
        try:
            row_format = detect([row for _, row in first if not isinstance(row, BadRow)], options)
        except InputError as error:
            raise InputError(f"{label}: {error}") from error
    places = chain(first, there)
    return row_format, grouped(places, options) if row_format is Format.rated_rows else places


class Filtered:
    """The rows of a source that have the wanted values; a row without such a column is bad."""

    def __init__(self, rows: Iterator[Place], wanted: dict[str, Any]) -> None:
        self.others = 0  # rows that have others
        self._rows = rows
        self._wanted = {name: value if isinstance(value, list) else [value] for name, value in wanted.items()}
        self._seen: dict[str, dict[str, None]] = {name: {} for name in wanted}
        self._num_fit = 0

    def __iter__(self) -> Iterator[Place]:
        for place, row in self._rows:
            fits: Row | BadRow | None = row
            try:
                if not isinstance(row, BadRow) and not self._fits(row):
                    fits = None
            except BadRow as bad:
                fits = bad
            if fits is None:
                self.others += 1
            else:
                self._num_fit += 1
                yield place, fits

    def _fits(self, row: Row) -> bool:
        fit = True
        for name, values in self._wanted.items():
            value = column(row, name)
            if len(self._seen[name]) < NUM_SHOWN:
                self._seen[name][one_line(value, 40)] = None
            fit = fit and any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)
        return fit

    @property
    def unfit(self) -> str:
        """That no row was left, with what their columns hold; "" where one was."""
        if self._num_fit or not self.others:
            return ""
        there = "; ".join(f"{name} has: {', '.join(values)}" for name, values in self._seen.items())
        return f"no row fits the filter {self._wanted}; {there}"
