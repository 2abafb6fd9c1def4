"""The rich console for standard output. Imports no torch."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

_PIPED_WIDTH = 160  # when standard output is not a terminal


def console(**options: Any) -> Console:
    """Return a console as wide as the terminal, or wide enough for tables when output is piped."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, **options)
