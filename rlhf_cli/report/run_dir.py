"""The folder of a run: what it holds and who may write it. Imports no torch."""

from __future__ import annotations

import json
import math
import platform
import re
import shlex
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import rlhf_cli
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import RunConfig

SUMMARY = "summary.json"  # written last, so its presence means that the run is finished
CHECKPOINT_STATE = "trainer.json"
_PACKAGES = ("torch", "transformers", "deepspeed", "datasets", "hydra-core", "omegaconf", "accelerate", "tokenizers")


def run_folder(run: RunConfig) -> Path:
    """Return the folder of a run; it need not exist."""
    return Path(run.output_dir, run.name)


def check_folder(run: RunConfig, num_ranks: int) -> None:
    """Raise InputError when a new run's folder is there, or when a run to resume has nothing to resume from."""
    folder = run_folder(run)
    if run.resume:
        if not is_finished(run):
            newest_checkpoint(folder, num_ranks)
    elif folder.exists():
        raise InputError(
            f"{folder} exists and is never overwritten; give another run.name, or run.resume=true to continue it"
        )


def is_finished(run: RunConfig) -> bool:
    """Say whether a run that is to be resumed has already come to its end."""
    return run.resume and (run_folder(run) / SUMMARY).exists()


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the published checkpoints in a run's `checkpoints/` folder, oldest first."""
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name)))


def newest_checkpoint(folder: Path, num_ranks: int) -> Path:
    """Return the folder of a run's newest checkpoint.

    Raises InputError where there is none, or where another number of ranks wrote it.
    """
    steps = checkpoint_steps(folder / "checkpoints")
    if not steps:
        raise InputError(f"run.resume=true, but {folder} has no checkpoint; leave run.resume out to start anew")
    newest = folder / "checkpoints" / f"step-{steps[-1]}"
    wanted = json.loads((newest / CHECKPOINT_STATE).read_text("utf-8"))["world_size"]
    if wanted != num_ranks:
        raise InputError(f"{newest} was written by {wanted} ranks, this run has {num_ranks}; resume with {wanted}")
    return newest


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
        """Add one JSON line to a file of the run; NaN and infinity, which JSON lacks, become null."""
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: _finite(value) for name, value in record.items()}, ensure_ascii=False) + "\n")

    def write_json(self, name: str, record: dict[str, Any]) -> None:
        """Write a whole JSON file of the run."""
        (self.folder / name).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """Return the records of a JSON-lines file of the run; none if it is not there."""
        file = self.folder / name
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []

    def forget_after(self, step: int) -> None:
        """Drop what a run resumed after `step` writes again: metrics of later steps, answers after training."""
        self._keep("metrics.jsonl", lambda record: record["step"] <= step)
        self._keep("samples.jsonl", lambda record: record["stage"] != "after")

    def _keep(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        kept = [record for record in self.read_lines(name) if wanted(record)]
        temporary = self.folder / f"{name}.tmp"
        temporary.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept), "utf-8")
        temporary.replace(self.folder / name)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # recorded as absent
            found[package] = "not installed"
    return found
