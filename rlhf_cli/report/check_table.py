"""The result of one setup check, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Column, Table

_WIDE = 140  # columns from which the table also shows what to do about checks that pass
_STYLES = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}


@dataclass(frozen=True)
class Check:
    """A setup check, which passes if its value is at most its bound."""

    name: str
    figure: float
    bound: float
    advice: str  # what to do if the check fails
    warns: bool = False  # if it fails, only warn and do not stop the run

    @property
    def status(self) -> str:
        """ok, warn or FAIL. A value that is not a number fails."""
        if self.figure <= self.bound:
            return "ok"
        return "warn" if self.warns else "FAIL"

    def __str__(self) -> str:
        advice = "" if self.status == "ok" else f": {self.advice}"
        return f"check {self.status}: {self.name}: {self.figure:.3g}, at most {self.bound:.3g}{advice}"


def check_table(checks: Sequence[Check], title: str, width: int) -> Table:
    """Return the checks as a table for a terminal of `width` columns."""
    right = [Column(name, justify="right") for name in ("value", "at most")]
    table = Table("", "check", *right, "if it fails", title=title, title_justify="left")
    for check in checks:
        advice = check.advice if width >= _WIDE or check.status != "ok" else ""
        status = f"[{_STYLES[check.status]}]{check.status}[/]"
        table.add_row(status, check.name, f"{check.figure:.2g}", f"{check.bound:.2g}", advice)
    return table
