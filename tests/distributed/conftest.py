"""Runs a function of tests/distributed/workers.py on two gloo ranks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_cli.engine.ports import free_port
from tests.conftest import REPOSITORY, child_environment


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[..., list[str]]:
    """Call `on_ranks(name, num_ranks=2)`: run the worker on all ranks, return what each printed; fail if one failed."""

    def call(name: str, num_ranks: int = 2) -> list[str]:
        shared = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        words = [sys.executable, "-m", "tests.distributed.workers", name, str(tmp_path)]
        ranks = [
            subprocess.Popen(
                words,
                cwd=REPOSITORY,
                env=child_environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(num_ranks)
        ]
        outputs = [process.communicate(timeout=500) for process in ranks]
        for process, (_, err) in zip(ranks, outputs, strict=True):
            assert process.returncode == 0, err[-3000:]
        return [out for out, _ in outputs]

    return call
