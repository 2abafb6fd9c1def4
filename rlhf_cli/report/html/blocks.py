"""The tables and texts of a report page, and its sections. The template escapes all text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_cli.report.run_records import Record
from rlhf_cli.system.text import one_line, printable


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]
    note: str = ""
    wide: bool = False  # it has long texts


@dataclass(frozen=True)
class Responses:
    """Held-out prompts with the responses before training and now."""

    title: str
    rows: Sequence[Record]  # prompt, mode, before, now, score_before, score_now, gold_before, gold_now, tokens, kl
    note: str = ""

    @property
    def has_gold(self) -> bool:
        """Whether there are gold scores."""
        return any(row["gold_now"] is not None for row in self.rows)


@dataclass(frozen=True)
class Facts:
    facts: Sequence[tuple[str, str, str]]  # name, value, explanation


@dataclass(frozen=True)
class Paragraphs:
    lines: Sequence[str]
    title: str = ""


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Any]  # of the classes above, or plots.Plot

    @property
    def anchor(self) -> str:
        """The name to link to."""
        return "".join(char if char.isalnum() else "-" for char in self.title.lower())


def build_sections(*sections: tuple[str, Callable[[], Iterable[Any]]]) -> list[Section]:
    """Build the sections that have blocks from titles and functions that return blocks.

    If a damaged file breaks a section, the section shows the error, and the others are not
    affected.
    """
    built = []
    for title, make_blocks in sections:
        try:
            blocks = list(make_blocks())
        except Exception as error:
            blocks = [Paragraphs([f"cannot be shown: {type(error).__name__}: {one_line(error, 300)}"])]
        if blocks:
            built.append(Section(title, blocks))
    return built


def short(value: Any) -> str:
    """Format a value of a table for people."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return printable(str(value))
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}" if math.isfinite(value) else "not finite"
