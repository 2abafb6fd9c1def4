"""A test's tier is its folder; fixtures that run the command in a child process."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from rlhf_cli.system.processes import free_port
from rlhf_cli.system.signals import STOPPING

REPOSITORY = Path(__file__).resolve().parent.parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    """Keep caches, those of child processes too, out of the user's own."""
    folder = tempfile.TemporaryDirectory(prefix="rlhf-test-cache-")
    config.add_cleanup(folder.cleanup)
    os.environ["XDG_CACHE_HOME"] = folder.name
    for number in STOPPING:  # children inherit what nohup, or a shell's `&`, has ignored
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


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


def run_on_ranks(
    words: list[str], num_ranks: int, folder: Path, timeout: int, **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    """Run a command on gloo ranks and return a finished process a rank."""
    shared = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **environment}
    ranks = [
        subprocess.Popen(
            words,
            cwd=folder,
            env=child_environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    finished = zip(ranks, outputs, strict=True)
    return [subprocess.CompletedProcess(words, process.returncode, *both) for process, both in finished]


def script(name: str) -> ModuleType:
    """A script of scripts/, imported by its path."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    path_before = list(sys.path)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    sys.path[:] = path_before
    return module


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


@pytest.fixture
def run_all(tmp_path: Path) -> Callable[..., None]:
    """Run several command lines one after the other in one child process, which imports the libraries once."""
    code = (
        "import json, sys\nfrom rlhf_cli.cli import main\n"
        "for words in json.loads(sys.argv[1]):\n    code = main(words)\n    if code: sys.exit(code)"
    )

    def run(*lines: list[str]) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(lines)],
            cwd=tmp_path,
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    return run
