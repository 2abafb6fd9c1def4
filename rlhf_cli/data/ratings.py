"""Ratings of answers: the columns that hold them, and which texts are numbers."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from rlhf_cli.config.sections import PreferenceDataConfig
from rlhf_cli.data.bad_rows import BadRow, Row, column

SCORES = ("overall_score", "score", "rating", "helpfulness")  # the first one present counts


def score_name(row: Row, score_column: str | None) -> str | None:
    """Return the column that ranks answers; None where a row has none."""
    return next((name for name in ((score_column,) if score_column else SCORES) if name in row), None)


def score_of(row: Row, config: PreferenceDataConfig) -> Any:
    """Return the rating of a row; raise BadRow where it is missing or not a number."""
    name = score_name(row, config.score_column) or config.score_column or SCORES[-1]
    value = column(row, name)
    number_or_none(value, name)
    return value


def number_or_none(value: Any, field: str) -> float | None:
    """Return a rating, which may be text; None for null, "N/A" and ""; raise BadRow for others."""
    if value is None or value in ("N/A", ""):
        return None
    number = as_number(value)
    if math.isnan(number):
        raise BadRow(field, f"wanted a number, got {value!r}")
    return number


def as_number(value: Any) -> float:
    """Return a finite number, which may be text; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return math.nan
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan
