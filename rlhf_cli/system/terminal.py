"""Standard output as rich sees it. Imports no torch."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

_PIPED_WIDTH = 160  # where nobody says how wide it is


def console(**options: Any) -> Console:
    """Return a console of the terminal's width, or of a width for tables where standard output is none."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, **options)
