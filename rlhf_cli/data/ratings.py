"""Ratings of answers: where they stand in a row, and which texts are numbers."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from rlhf_cli.config.sections import PreferenceDataConfig
from rlhf_cli.data.bad_rows import BadRow, Row, column

SCORES = ("overall_score", "score", "rating", "helpfulness")  # usual names of what ranks answers, the first there wins


def score_name(row: Row, score_column: str | None) -> str | None:
    """Return the name of the column that ranks answers, if a row has it."""
    return next((name for name in ((score_column,) if score_column else SCORES) if name in row), None)


def score_of(row: Row, config: PreferenceDataConfig) -> Any:
    """Return what ranks the answer of a row of `rated_rows`."""
    name = score_name(row, config.score_column)
    if name is None:
        return column(row, config.score_column or SCORES[-1])
    number_or_none(row[name], name)
    return row[name]


def number_or_none(value: Any, field: str) -> float | None:
    """Return a rating, which may be written as text; None for null and "N/A"; raise BadRow for anything else."""
    if value is None or value in ("N/A", ""):
        return None
    number = as_number(value)
    if math.isnan(number):
        raise BadRow(field, f"wanted a number, got {value!r}")
    return number


def as_number(value: Any) -> float:
    """Return a finite number, or the one that a text spells; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
