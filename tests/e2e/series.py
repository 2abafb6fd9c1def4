"""The metrics that runs wrote down, and whether two of them are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOT_COMPARED = ("time/", "tokens_per_s", "perf/", "memory/")


def metrics(folder: Path) -> list[dict[str, float]]:
    """Read the records of a run, without its clock, its speed and its memory."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(NOT_COMPARED)} for line in lines]


def assert_same_series(left: Path, right: Path, rtol: float = 1e-5, atol: float = 5e-6) -> None:
    """Compare two runs record by record; a figure that is 0 but for rounding may be off by atol."""
    first, second = metrics(left), metrics(right)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=rtol, abs=atol)
