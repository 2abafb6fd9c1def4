"""Rows on their way from a file to training examples: filtered, recognised, converted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Generic, TypeVar

from rlhf_cli.config.data_sources import Format, Source
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_pattern
from rlhf_cli.config.sections import DataConfig
from rlhf_cli.data.bad_rows import NUM_SHOWN, BadRow, Rejected, Row, column, shorten
from rlhf_cli.data.detect_format import NUM_DETECTED, detect
from rlhf_cli.data.group_by_prompt import grouped
from rlhf_cli.data.read_rows import PlacedRow, load_rows
from rlhf_cli.system.text import one_line

_MAX_COLUMNS = 100  # that an error lists; each row of a broken file may have others
Made = TypeVar("Made")
# Options and format of a source -> the columns that its rows must have, each with the option that
# names it, and a function that converts a row or raises BadRow
Prepare = Callable[[Any, Format], tuple[dict[str, str], Callable[[Row], Made]]]


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    path: str
    source: Source
    options: DataConfig  # for the rows of this source
    option: str  # that names the source in messages: data.train or data.eval

    @property
    def label(self) -> str:
        """The option and the path, for messages."""
        return f"{self.option}={self.path}"


def files_of(config: DataConfig, source: Source, option: str) -> list[SourceFile]:
    """Return the files of a source; raise InputError where there is none."""
    options = config.of_source(source)
    return [SourceFile(path, source, options, option) for path in resolve_pattern(source.path, option)]


@dataclass(frozen=True)
class SourceSummary:
    """What became of the rows of one file."""

    dropped: dict[str, int]  # reason -> rows
    num_filtered_out: int
    filter_error: str  # why the filter leaves no row; "" where it leaves some
    format: str


def describe(name: str, kept: int, summaries: list[SourceSummary]) -> str:
    """Return one line: `a.jsonl: 812 rows kept, 3 dropped (2 too long, 1 equal); read as hh`."""
    dropped = sum((Counter(one.dropped) for one in summaries), Counter[str]())
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    line = f"{name}: {kept} rows kept, {dropped.total()} dropped{f' ({reasons})' if reasons else ''}"
    num_filtered_out = sum(one.num_filtered_out for one in summaries)
    line += f", {num_filtered_out} left out by the filter" if num_filtered_out else ""
    formats = sorted({one.format for one in summaries})
    return line if formats == ["columns"] else f"{line}; read as {' and '.join(formats)}"


class Conversion(Generic[Made]):
    """The rows of one file; yields (place, converted row or BadRow) for each."""

    def __init__(self, file: SourceFile, prepare: Prepare[Made]) -> None:
        """Detect the format; raise InputError for an unreadable file or several formats."""
        self.num_rows = 0  # that the filter keeps
        self.num_filtered_out = 0
        self._label = file.label
        wanted = file.source.filter.items()
        self._filter = {name: value if isinstance(value, list) else [value] for name, value in wanted}
        self._values: dict[str, dict[str, None]] = {name: {} for name in self._filter}
        unread = self._filtered(load_rows(file.path, file.source.split or "", file.option))
        first = list(islice(unread, NUM_DETECTED))
        self.format = file.options.format
        if self.format is Format.auto:
            try:
                self.format = detect([row for _, row in first if not isinstance(row, BadRow)], file.options)
            except InputError as error:
                raise InputError(f"{file.label}: {error}") from error
        self._rows: Iterator[PlacedRow] = chain(first, unread)
        if self.format is Format.rated_rows:
            self._rows = grouped(self._rows, file.options)
        self._missing, self._convert = prepare(file.options, self.format)
        self._columns: dict[str, None] = {}  # of all rows so far

    def __iter__(self) -> Iterator[tuple[str, Made | BadRow]]:
        """Raises InputError at the end where no row has a required column."""
        for place, row in self._rows:
            self.num_rows += 1
            try:
                if isinstance(row, BadRow):
                    raise row
                self._missing = {name: option for name, option in self._missing.items() if name not in row}
                if len(self._columns) < _MAX_COLUMNS:
                    self._columns.update(dict.fromkeys(row))
                yield place, self._convert(row)
            except BadRow as bad:
                yield place, bad
            except RecursionError:
                yield place, BadRow("", "nested too deeply")
        for name, option in self._missing.items():
            if self._columns:
                columns = ", ".join(self._columns)
                raise InputError(shorten(f"{self._label}: no column '{name}'; there are: {columns}; set {option}"))

    def convert_all(self, append: Callable[[Made], None]) -> SourceSummary:
        """Pass each good row to a function; raise InputError where rows are bad."""
        rejected = Rejected()
        for place, found in self:
            if isinstance(found, BadRow):
                rejected.add(place, found)
            else:
                append(found)
        rejected.raise_if_refused(self._label, self.num_rows)
        return SourceSummary(dict(rejected.dropped), self.num_filtered_out, self.filter_error, self.format.name)

    def _filtered(self, rows: Iterator[PlacedRow]) -> Iterator[PlacedRow]:
        """Yield the rows that match the filter; one without a column of the filter is bad."""
        for place, row in rows:
            try:
                if not isinstance(row, BadRow) and not self._matches(row):
                    self.num_filtered_out += 1
                    continue
            except BadRow as bad:
                row = bad
            yield place, row

    def _matches(self, row: Row) -> bool:
        matches = True
        for name, wanted in self._filter.items():
            value = column(row, name)
            if len(self._values[name]) < NUM_SHOWN:
                self._values[name][one_line(value, 40)] = None
            matches &= any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in wanted)
        return matches

    @property
    def filter_error(self) -> str:
        """Why the filter leaves no row, with the values there are; "" where it leaves one."""
        if self.num_rows or not self.num_filtered_out:
            return ""
        values = "; ".join(f"{name} has: {', '.join(values)}" for name, values in self._values.items())
        return f"no row matches the filter {self._filter}; {values}"
