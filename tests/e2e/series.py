"""The metrics that runs wrote down, and whether two of them are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOT_COMPARED = ("time/", "tokens_per_s", "perf/", "memory/")
_NEARLY_ZERO = 5e-6  # of a figure that is 0 but for rounding
# the mean of normalised scores is 0 but for rounding the head: of norm 58, on states of norm 5.7, 58 * 5.7 * 6e-8
_OF_FIGURE = {"calibration/mean": 2e-5}


def metrics(folder: Path) -> list[dict[str, float]]:
    """Read the records of a run, without its clock, its speed and its memory."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(NOT_COMPARED)} for line in lines]


def assert_same_series(left: Path, right: Path, rtol: float = 1e-5) -> None:
    """Compare two runs record by record; a figure that is 0 but for rounding may be off by _NEARLY_ZERO."""
    first, second = metrics(left), metrics(right)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a == {k: pytest.approx(v, rel=rtol, abs=_OF_FIGURE.get(k, _NEARLY_ZERO)) for k, v in b.items()}
