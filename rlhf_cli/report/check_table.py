"""What a check of the set-up found, and the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

_WIDE = 140


@dataclass(frozen=True)
class Check:
    """One statement about the set-up: it holds where the figure is not above the bound."""

    name: str
    figure: float
    bound: float
    advice: str  # what to do where it does not hold
    warns: bool = False  # a warning at most: it does not stop a run

    @property
    def status(self) -> str:
        """Return ok, warn or FAIL; a figure that is not a number fails."""
        if self.figure <= self.bound:
            return "ok"
        return "warn" if self.warns else "FAIL"

    def __str__(self) -> str:
        tail = "" if self.status == "ok" else f": {self.advice}"
        return f"check {self.status}: {self.name}: {self.figure:.3g}, at most {self.bound:.3g}{tail}"


def table(checks: Sequence[Check], title: str, width: int) -> Table:
    """Lay the checks out; what to do stands beside each, or in a narrow terminal beside those that do not hold."""
    styles = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}
    made = Table(title=title, title_justify="left")
    made.add_column("")
    made.add_column("check")
    made.add_column("figure", justify="right")
    made.add_column("at most", justify="right")
    made.add_column("if it fails")
    for check in checks:
        advice = check.advice if width >= _WIDE or check.status != "ok" else ""
        status = f"[{styles[check.status]}]{check.status}[/]"
        made.add_row(status, check.name, f"{check.figure:.2g}", f"{check.bound:.2g}", advice)
    return made
