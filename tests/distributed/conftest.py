"""Runs a function of tests/distributed/workers.py on two gloo ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_on_ranks


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[..., list[str]]:
    """Call `on_ranks(name, num_ranks=2)`: run the worker on all ranks, return what each printed; fail if one failed."""

    def call(name: str, num_ranks: int = 2) -> list[str]:
        words = [sys.executable, "-m", "tests.distributed.workers", name, str(tmp_path)]
        done = run_on_ranks(words, num_ranks, REPOSITORY, timeout=500)
        for process in done:
            assert process.returncode == 0, process.stderr[-3000:]
        return [process.stdout for process in done]

    return call
