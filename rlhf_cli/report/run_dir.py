"""The folder of a run: what it holds and who may write it. Imports no torch."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import platform
import shlex
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import rlhf_cli
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.redaction import redact_args
from rlhf_cli.config.sections import RunConfig
from rlhf_cli.system.durable_files import disk_errors, sync, write_durably

SUMMARY = "summary.json"  # written last, so its presence means that the run is finished
CONFIG = "config.yaml"
RUN = "run.json"  # command, start, versions
METRICS = "metrics.jsonl"  # a line a step or evaluation
SAMPLES = "samples.jsonl"  # a line an answer to a held-out prompt
ROLLOUTS = "rollouts.jsonl"  # a line a step: every response's score, KL and length, and one response as text
EVENTS = "events.jsonl"  # guards, warnings, resumed starts
PAIRS = "pairs.jsonl"  # a line a held-out pair, scored by the trained reward model
CHECKS = "checks.json"
PLAN = "plan.json"  # the arithmetic of the batches, and what memory was planned, as lines
LOCK = ".lock"
_PACKAGES = ("torch", "transformers", "deepspeed", "datasets", "hydra-core", "omegaconf", "accelerate", "tokenizers")


def run_folder(run: RunConfig) -> Path:
    """Return the folder of a run; it need not exist."""
    return Path(run.output_dir, run.name)


def is_finished(folder: Path) -> bool:
    """Say whether the run in a folder has come to its end."""
    return (folder / SUMMARY).exists()


def lock(folder: Path) -> int:
    """Make this process the only one that writes to a run's folder, until it ends or closes the returned descriptor.

    Raises InputError where another process has it.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "another process"
        os.close(descriptor)
        raise InputError(f"{folder} is being written by {owner}; wait for it, or give another run.name") from error
    except OSError as error:  # Lustre or NFS without locks: better one writer on trust than no run
        logging.getLogger("rlhf").warning("%s: no lock on this file system (%s)", folder, error.strerror)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor


def require_unlocked(folder: Path) -> None:
    """Raise InputError where a process writes to a run's folder."""
    if (folder / LOCK).exists():
        os.close(lock(folder))


def lines_of(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON-lines file, one after the other; none if it is not there.

    A last line that a killed process left unfinished is no record.
    """
    if not file.exists():
        return
    with file.open("rb") as opened:
        for line in opened:
            if line.endswith(b"\n"):
                yield json.loads(line.decode("utf-8", "replace"))


class RunDir:
    """Writes the text files of a run; made on rank 0 only."""

    def __init__(self, run: RunConfig, command: str, args: list[str], config_yaml: str, world_size: int) -> None:
        """Create the folder (or open it, when resuming), lock it, and write down what is run.

        config_yaml: the options with their interpolations unresolved. Raises InputError where another process made
        the folder first, or writes to it.
        """
        self.folder = run_folder(run)
        try:
            self.folder.mkdir(parents=True, exist_ok=run.resumes)
        except FileExistsError as error:
            raise InputError(f"{self.folder} exists and is never overwritten; give another run.name") from error
        except OSError as error:
            raise InputError(f"{self.folder}: cannot create the run folder: {error.strerror}") from error
        self._lock = lock(self.folder)
        if run.resumes:
            self._cut_torn_lines()
        record = {
            "command": shlex.join(["rlhf", command, *redact_args(args)]),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seed": run.seed,
            "world_size": world_size,
            "versions": {"rlhf": rlhf_cli.__version__, "python": platform.python_version(), **_versions()},
        }
        if run.resumes:
            self.append("resumes.jsonl", record)
        else:
            with disk_errors(self.folder / CONFIG, len(config_yaml)):
                write_durably(self.folder / CONFIG, config_yaml)
            self.write_json(RUN, record)

    def _cut_torn_lines(self) -> None:
        """Drop what a full disk or a kill left of a last line: what is appended would stand on the same one."""
        for file in self.folder.glob("*.jsonl"):
            with file.open("rb") as opened:
                whole = sum(len(line) for line in opened if line.endswith(b"\n"))
            if whole < file.stat().st_size:
                with disk_errors(file, whole), file.open("r+b") as torn:
                    torn.truncate(whole)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add one JSON line to a file of the run; NaN and infinity, which JSON lacks, become null."""
        file = self.folder / name
        line = _line(record)
        with disk_errors(file, len(line)), file.open("a", encoding="utf-8") as opened:
            opened.write(line)

    def write_json(self, name: str, record: dict[str, Any]) -> None:
        """Write a whole JSON file of the run, on the disk when this returns."""
        with disk_errors(self.folder / name, len(str(record))):
            write_durably(self.folder / name, json.dumps(_finite(record), indent=2, ensure_ascii=False) + "\n")

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the records of a JSON-lines file of the run, as `lines_of` does."""
        return lines_of(self.folder / name)

    def sync(self) -> int:
        """Bring what was logged to the disk; return how many metric records there are."""
        for name in (METRICS, SAMPLES, ROLLOUTS, EVENTS):
            if (self.folder / name).exists():
                sync(self.folder / name)
        return sum(1 for _ in self.lines(METRICS))

    def forget_after(self, step: int, num_logged: int) -> None:
        """Drop what a run that is resumed after a step writes again: metric records but the first `num_logged`,
        answers after training, and all else of later steps.
        """
        self._keep(METRICS, lambda place, _: place < num_logged)
        self._keep(SAMPLES, lambda _, record: record["stage"] != "after" and record.get("step", 0) <= step)
        self._keep(ROLLOUTS, lambda _, record: record["step"] <= step)
        self._keep(EVENTS, lambda _, record: record["step"] <= step)

    def _keep(self, name: str, wanted: Callable[[int, dict[str, Any]], bool]) -> None:
        file = self.folder / name
        if not file.exists():
            return
        kept = (record for place, record in enumerate(self.lines(name)) if wanted(place, record))
        self.write_lines(name, kept, file.stat().st_size)

    def write_lines(self, name: str, records: Iterable[dict[str, Any]], num_bytes: int) -> None:
        """Write a whole JSON-lines file of the run, on the disk when this returns; num_bytes: about its size."""
        with disk_errors(self.folder / name, num_bytes):
            write_durably(self.folder / name, (_line(record) for record in records))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(_finite(record), ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # recorded as absent
            found[package] = "not installed"
    return found
