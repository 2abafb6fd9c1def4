"""The folder of a run: what it holds and who may write it. Imports no torch."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import rlhf_cli
from rlhf_cli.config.schema import InputError, RunConfig

_PACKAGES = ("torch", "transformers", "deepspeed", "datasets", "hydra-core", "omegaconf", "accelerate", "tokenizers")


def run_folder(run: RunConfig) -> Path:
    """Return the folder of a run; it need not exist."""
    return Path(run.output_dir, run.name)


def check_free(run: RunConfig) -> None:
    """Raise InputError when the folder is there and the run is new, or is not there and the run is to be resumed."""
    if os.environ.get("RANK", "0") != "0":
        return
    folder = run_folder(run)
    if folder.exists() and not run.resume:
        raise InputError(
            f"{folder} exists and is never overwritten; give another run.name, or run.resume=true to continue it"
        )
    if run.resume and not folder.exists():
        raise InputError(f"run.resume=true, but {folder} does not exist; leave run.resume out to start this run")


class RunDir:
    """Writes the text files of a run; made on rank 0 only."""

    def __init__(self, run: RunConfig, command: str, args: list[str], config_yaml: str, world_size: int) -> None:
        """Create the folder (or open it, when resuming) and write down what is run.

        Raises InputError where another process made the folder first.
        """
        self.folder = run_folder(run)
        try:
            self.folder.mkdir(parents=True, exist_ok=run.resume)
        except FileExistsError as error:
            raise InputError(f"{self.folder} exists and is never overwritten; give another run.name") from error
        except OSError as error:
            raise InputError(f"{self.folder}: cannot create the run folder: {error.strerror}") from error
        record = {
            "command": shlex.join(["rlhf", command, *args]),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seed": run.seed,
            "world_size": world_size,
            "versions": {"rlhf": rlhf_cli.__version__, "python": platform.python_version(), **_versions()},
        }
        if run.resume:
            self.append("resumes.jsonl", record)
        else:
            (self.folder / "config.yaml").write_text(config_yaml, "utf-8")
            self.write_json("run.json", record)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add one JSON line to a file of the run; it is on its way to the disk when this returns."""
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def write_json(self, name: str, record: dict[str, Any]) -> None:
        """Write a whole JSON file of the run."""
        (self.folder / name).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """Return the records of a JSON-lines file of the run; none if it is not there."""
        file = self.folder / name
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps after `step`: a resumed run writes them again."""
        kept = [record for record in self.read_lines("metrics.jsonl") if record["step"] <= step]
        temporary = self.folder / "metrics.jsonl.tmp"
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), "utf-8")
        temporary.replace(self.folder / "metrics.jsonl")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # recorded as absent
            found[package] = "not installed"
    return found


def is_terminal() -> bool:
    """Say whether standard output is a terminal."""
    return sys.stdout.isatty()
