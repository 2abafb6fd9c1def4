"""Runs in child processes that are watched, signalled and killed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_cli.system.processes import state_and_parent
from rlhf_cli.system.run_status import read_status
from tests.conftest import REPOSITORY, child_environment, run_on_ranks
from tests.e2e.series import metrics

TINY = ["train-ppo", "conf=tiny", "ppo.num_steps=8", "eval.num_prompts=2", "check.num_prompts=0"]


class Started:
    """A command in a session of its own; its output goes to a file that is read as it grows.

    command: what comes before the words `train-ppo ...`, such as a launcher.
    """

    def __init__(self, folder: Path, *args: str, command: Sequence[str] = (sys.executable, "-m", "rlhf_cli")) -> None:
        self.out = folder / f"out-{len(list(folder.glob('out-*')))}.txt"
        self.mark = f"TEST_MARK={self.out}"  # in the environment of all that it starts
        with self.out.open("w") as file:
            self.parent = subprocess.Popen(
                [*command, *args],
                cwd=folder,
                env=child_environment(TEST_MARK=str(self.out)),
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

    def find(self, *, variable: str = "", word: str = "") -> int:
        """The process, of those it has started, with a variable in its environment and a word on its command line."""
        for pid in processes_with(self.mark):
            with contextlib.suppress(OSError):
                environ, cmdline = (Path(f"/proc/{pid}/{name}").read_text() for name in ("environ", "cmdline"))
                if f"\0{variable}\0" in f"\0{environ}\0\0" and word in cmdline.split("\0"):
                    return pid
        raise AssertionError(f"no process with {variable} {word}")

    def rank(self, number: int) -> int:
        """The process of a rank."""
        return self.find(variable=f"RANK={number}", word="rlhf_cli")

    def end(self, timeout: float = 60) -> int:
        """Wait for the end; see that nothing is left; return the exit code."""
        code = self.parent.wait(timeout)
        deadline = time.monotonic() + 10
        while alive := processes_with(self.mark):
            assert time.monotonic() < deadline, alive
            time.sleep(0.1)
        return code


def processes_with(variable: str) -> list[int]:
    """Live processes with a variable in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            stat = state_and_parent(int(environ.parent.name))
            if stat is not None and stat[0] != "Z" and f"\0{variable}\0" in f"\0{environ.read_text()}":
                found.append(int(environ.parent.name))
    return found


def with_fault(folder: Path, fault: str, rank: int, *args: str, num_ranks: int = 2) -> list[Any]:
    """Run a command on ranks of which one has a fault; return a CompletedProcess a rank."""
    watch = folder / f"watch-{fault}-{time.time_ns()}"
    watch.mkdir()
    words = [sys.executable, "-m", "tests.e2e.inject", fault, str(rank), *args]
    shared = {"RLHF_WATCH_FOLDER": str(watch), "PYTHONPATH": str(REPOSITORY)}
    return run_on_ranks(words, num_ranks, folder, timeout=120, **shared)


def status(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "status.json").read_text())
    return record


def same_weights(left: Path, right: Path) -> bool:
    """Whether two runs exported the same bytes."""
    files = sorted(file.relative_to(left) for file in (left / "final").rglob("*.safetensors"))
    return bool(files) and all((left / file).read_bytes() == (right / file).read_bytes() for file in files)


def assert_equal_runs(run: Path, whole: Path) -> None:
    """Two runs logged, answered and exported the same, to the last digit and byte."""
    assert metrics(run) == metrics(whole)
    assert (run / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert same_weights(run, whole)
    assert read_status(run)["state"] == "finished"
