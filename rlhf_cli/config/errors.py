"""What is said of wrong input, and the range checks of single options."""

from __future__ import annotations

import math


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line: what, got, wanted, how to mend. Exit code 2."""


class TrainingError(RuntimeError):
    """A run cannot go on; the message is one line: what, since when, what to try. Exit code 1."""


def require(ok: bool, key: str, got: object, wanted: str) -> None:
    if not ok:
        raise InputError(f"{key} must be {wanted}, got {got}")


def require_finite_range(key: str, got: float, low: float, high: float) -> None:
    require(math.isfinite(got) and low <= got <= high, key, got, f"between {low:g} and {high:g}")
