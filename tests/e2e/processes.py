"""Runs in child processes that are watched, signalled and killed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rlhf_cli.engine.ports import free_port
from tests.conftest import REPOSITORY, child_environment

TINY = ["train-ppo", "conf=tiny", "ppo.num_steps=8", "eval.num_prompts=2", "check.num_prompts=0"]


class Started:
    """A command in a session of its own; its output goes to a file that is read as it grows."""

    def __init__(self, folder: Path, *args: str, **environment: str) -> None:
        self.out = folder / f"out-{len(list(folder.glob('out-*')))}.txt"
        with self.out.open("w") as file:
            self.parent = subprocess.Popen(
                [sys.executable, "-m", "rlhf_cli", *args],
                cwd=folder,
                env=child_environment(**environment),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.out.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 100
        while text not in self.text:
            assert self.parent.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def rank(self, number: int) -> int:
        """The process of a rank."""
        for pid in children(self.parent.pid):
            with contextlib.suppress(OSError):
                if f"\0RANK={number}\0" in f"\0{Path(f'/proc/{pid}/environ').read_text()}":
                    return pid
        raise AssertionError(f"no rank {number}")

    def end(self, timeout: float = 60) -> int:
        """Wait for the end; see that nothing is left; return the exit code."""
        code = self.parent.wait(timeout)
        deadline = time.monotonic() + 10
        while alive := processes_with(f"RLHF_SUPERVISOR_PID={self.parent.pid}"):
            assert time.monotonic() < deadline, alive
            time.sleep(0.1)
        return code


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def processes_with(variable: str) -> list[int]:
    """Live processes with a variable in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            state = environ.with_name("stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and f"\0{variable}\0" in f"\0{environ.read_text()}":
                found.append(int(environ.parent.name))
    return found


def with_fault(folder: Path, fault: str, rank: int, *args: str, num_ranks: int = 2, timeout: int = 120) -> list[Any]:
    """Run a command on ranks of which one has a fault; return a CompletedProcess a rank."""
    shared = {
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "RLHF_WATCH_FOLDER": str(folder / f"watch-{fault}-{time.time_ns()}"),
        "PYTHONPATH": str(REPOSITORY),
    }
    Path(shared["RLHF_WATCH_FOLDER"]).mkdir()
    words = [sys.executable, "-m", "tests.e2e.inject", fault, str(rank), *args]
    ranks = [
        subprocess.Popen(
            words,
            cwd=folder,
            env=child_environment(RANK=str(one), LOCAL_RANK=str(one), **shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for one in range(num_ranks)
    ]
    done = []
    try:
        for process in ranks:
            out, err = process.communicate(timeout=timeout)
            done.append(subprocess.CompletedProcess(words, process.returncode, out, err))
    finally:
        for process in ranks:
            process.kill()
    return done


def status(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "status.json").read_text())
    return record


def same_weights(left: Path, right: Path) -> bool:
    """Whether two runs exported the same bytes."""
    files = sorted(file.relative_to(left) for file in (left / "final").rglob("*.safetensors"))
    return bool(files) and all((left / file).read_bytes() == (right / file).read_bytes() for file in files)
