"""A test's tier is its folder; fixtures that run the command in a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for tier in {"distributed", "e2e", "faults"}.intersection(Path(item.path).parts):
            item.add_marker(tier)


def child_environment(**extra: str) -> dict[str, str]:
    """An environment without network, launcher variables or a GPU, one thread a process."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    bin_folder = str(Path(sys.executable).parent)
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{bin_folder}{os.pathsep}{kept.get('PATH', '')}",
        **extra,
    }


@pytest.fixture
def run_rlhf(tmp_path: Path) -> Run:
    """Run `rlhf ARGS` in an empty folder and return the finished process."""

    def run(*args: str, timeout: int = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rlhf_cli", *args],
            cwd=tmp_path,
            env=child_environment(**environment),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
