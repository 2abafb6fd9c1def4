"""The run folder: its files, and the lock of the process that writes them. Imports no torch."""

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

SUMMARY = "summary.json"  # written last: a run that has it is finished
CONFIG = "config.yaml"
RUN = "run.json"  # command, start time, versions
METRICS = "metrics.jsonl"  # one line per step or evaluation
SAMPLES = "samples.jsonl"  # one line per response to a held-out prompt
ROLLOUTS = "rollouts.jsonl"  # one line per step: score, KL and length of each response, and the text of one
EVENTS = "events.jsonl"  # guards, warnings, resumed starts
PAIRS = "pairs.jsonl"  # one line per held-out pair, scored by the trained reward model
CHECKS = "checks.json"
PLAN = "plan.json"  # the planned batches and memory, as lines of text
LOCK = ".lock"
_PACKAGES = ("torch", "transformers", "deepspeed", "datasets", "hydra-core", "omegaconf", "accelerate", "tokenizers")


def run_folder(run: RunConfig) -> Path:
    """Return the path of a run's folder, which may not exist yet."""
    return Path(run.output_dir, run.name)


def is_finished(folder: Path) -> bool:
    """Return whether the run in a folder is finished."""
    return (folder / SUMMARY).exists()


def lock(folder: Path) -> int:
    """Lock a run folder for this process, until it ends or closes the returned descriptor.

    Raises InputError if another process holds the lock.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "another process"
        os.close(descriptor)
        raise InputError(
            f"{folder} is being written by {owner}; wait until it ends, or choose another run.name"
        ) from error
    except OSError as error:  # Lustre or NFS without locks: continue without one
        logging.getLogger("rlhf").warning("%s: this file system has no locks (%s)", folder, error.strerror)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor


def require_unlocked(folder: Path) -> None:
    """Raise InputError if a process is writing to a run folder."""
    if (folder / LOCK).exists():
        os.close(lock(folder))


def complete_lines(file: Path) -> Iterator[bytes]:
    """Yield the lines of a file, if it exists, without an incomplete last line."""
    if file.is_file():
        with file.open("rb") as opened:
            yield from (line for line in opened if line.endswith(b"\n"))


def lines_of(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a JSON-lines file, if it exists, without an incomplete last line."""
    return (json.loads(line.decode("utf-8", "replace")) for line in complete_lines(file))


class RunDir:
    """Writes the text files of a run. Only rank 0 has one."""

    def __init__(self, run: RunConfig, command: str, args: list[str], config_yaml: str, world_size: int) -> None:
        """Create the folder (to resume: open it), lock it, and record command and options.

        config_yaml: the options with unresolved interpolations. Raises InputError if another
        process created the folder first or is writing to it.
        """
        self.folder = run_folder(run)
        try:
            self.folder.mkdir(parents=True, exist_ok=run.resumes)
        except FileExistsError as error:
            raise InputError(f"{self.folder} exists and is never overwritten; choose another run.name") from error
        except OSError as error:
            raise InputError(f"{self.folder}: cannot create the run folder: {error.strerror}") from error
        self._lock = lock(self.folder)
        versions = {"rlhf": rlhf_cli.__version__, "python": platform.python_version()}
        record = {
            "command": shlex.join(["rlhf", command, *redact_args(args)]),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seed": run.seed,
            "world_size": world_size,
            "versions": versions | {package: _version(package) for package in _PACKAGES},
        }
        if run.resumes:
            self._cut_incomplete_lines()
            self.append("resumes.jsonl", record)
        else:
            with disk_errors(self.folder / CONFIG, len(config_yaml)):
                write_durably(self.folder / CONFIG, config_yaml)
            self.write_json(RUN, record)

    def _cut_incomplete_lines(self) -> None:
        """Remove incomplete last lines, which a full disk or a kill leaves."""
        for file in self.folder.glob("*.jsonl"):
            num_bytes = sum(map(len, complete_lines(file)))
            if num_bytes < file.stat().st_size:
                with disk_errors(file, num_bytes), file.open("r+b") as opened:
                    opened.truncate(num_bytes)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append a record to a JSON-lines file. NaN and infinity become null."""
        file, line = self.folder / name, _to_line(record)
        with disk_errors(file, len(line)), file.open("a", encoding="utf-8") as opened:
            opened.write(line)

    def write_json(self, name: str, record: dict[str, Any]) -> None:
        """Write a JSON file durably."""
        with disk_errors(self.folder / name, len(str(record))):
            write_durably(self.folder / name, json.dumps(_finite(record), indent=2, ensure_ascii=False) + "\n")

    def write_lines(self, name: str, records: Iterable[dict[str, Any]], num_bytes: int) -> None:
        """Replace a JSON-lines file durably. num_bytes: its approximate size."""
        with disk_errors(self.folder / name, num_bytes):
            write_durably(self.folder / name, (_to_line(record) for record in records))

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the records of a JSON-lines file, as `lines_of` does."""
        return lines_of(self.folder / name)

    def sync(self) -> int:
        """Flush the logged records to disk. Return the number of metric records."""
        for name in (METRICS, SAMPLES, ROLLOUTS, EVENTS):
            if (self.folder / name).exists():
                sync(self.folder / name)
        return sum(1 for _ in self.lines(METRICS))

    def forget_after(self, step: int, num_logged: int) -> None:
        """Remove what a run that resumes after a step will write again.

        Of the metrics, keep the first `num_logged` records. Remove responses after training, and
        the records of later steps.
        """
        self._keep(METRICS, lambda index, _: index < num_logged)
        self._keep(SAMPLES, lambda _, record: record["stage"] != "after" and record.get("step", 0) <= step)
        for name in (ROLLOUTS, EVENTS):
            self._keep(name, lambda _, record: record["step"] <= step)

    def _keep(self, name: str, is_kept: Callable[[int, dict[str, Any]], bool]) -> None:
        file = self.folder / name
        if file.exists():
            kept = (record for index, record in enumerate(self.lines(name)) if is_kept(index, record))
            self.write_lines(name, kept, file.stat().st_size)


def _to_line(record: dict[str, Any]) -> str:
    return json.dumps(_finite(record), ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
