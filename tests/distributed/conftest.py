"""Runs functions of tests/distributed/workers.py on gloo ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_on_ranks

BATCH = (
    *("updates", "offloaded_updates", "generation", "gathering", "layers", "layerwise", "frozen", "checkpointing"),
    *("skipping", "frozen_through_training", "bfloat16", "bfloat16_states", "small_groups"),
)


def _outputs(folder: Path, name: str, num_ranks: int) -> list[str] | None:
    """Return what each rank printed in a worker, or None if a rank did not finish it."""
    files = [folder / name / f"{rank}.txt" for rank in range(num_ranks)]
    return [file.read_text() for file in files] if all(file.exists() for file in files) else None


@pytest.fixture(scope="session")
def batch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all workers on two ranks in one launch, if several tests need them; return their folder.

    A worker that fails ends the batch. It and those after it are missing in the folder; their tests run them alone.
    """
    folder = tmp_path_factory.mktemp("batch")
    if sum("on_ranks" in item.fixturenames for item in request.session.items) > 3:
        run_on_ranks([sys.executable, "-m", "tests.distributed.workers", str(folder), *BATCH], 2, REPOSITORY, 500)
    return folder


@pytest.fixture
def on_ranks(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., list[str]]:
    """Call `on_ranks(name, num_ranks=2)` to get what each rank printed in a worker; fail if a rank failed."""

    def call(name: str, num_ranks: int = 2) -> list[str]:
        if num_ranks == 2 and name in BATCH:
            outputs = _outputs(request.getfixturevalue("batch"), name, num_ranks)
            if outputs is not None:
                return outputs
        words = [sys.executable, "-m", "tests.distributed.workers", str(tmp_path), name]
        for process in run_on_ranks(words, num_ranks, REPOSITORY, timeout=500):
            assert process.returncode == 0, process.stderr[-3000:]
        outputs = _outputs(tmp_path, name, num_ranks)
        assert outputs is not None
        return outputs

    return call
