"""Finds a run's checkpoints and verifies that they are complete and unchanged. Imports no torch.

`checkpoints/step-N/` is one checkpoint. Its `manifest.json` is written last; it lists every file with its size and
SHA-256, and contains a hash of itself. `checkpoints/latest` names the newest checkpoint, `checkpoints/best` the best.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import CheckpointError, InputError
from rlhf_cli.system.durable_files import sha256, write_durably
from rlhf_cli.system.watchdog import PROGRESS

FORMAT = 1
MANIFEST = "manifest.json"
LATEST = "latest"
BEST = "best"
CONFIG = "config.yaml"


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a checkpoint."""

    step: int
    world_size: int
    written: str  # local time, ISO 8601
    files: tuple[FileRecord, ...]

    def write(self, folder: Path) -> None:
        """Write the manifest to its checkpoint. It must be the last file."""
        body = {
            "format": FORMAT,
            "step": self.step,
            "world_size": self.world_size,
            "written": self.written,
            "files": {record.name: {"size": record.size, "sha256": record.sha256} for record in self.files},
        }
        write_durably(folder / MANIFEST, json.dumps({**body, "manifest_sha256": _digest(body)}, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest and check that every file exists with its size; raise CheckpointError if not."""
    file = folder / MANIFEST
    try:
        body = json.loads(file.read_bytes())
        wanted = body.pop("manifest_sha256")
        got = _digest(body)
        if body["format"] != FORMAT:
            raise CheckpointError(f"{file}: got format {body['format']}, wanted format {FORMAT}")
        files = tuple(FileRecord(name, one["size"], one["sha256"]) for name, one in body["files"].items())
        manifest = Manifest(body["step"], body["world_size"], body["written"], files)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: missing, so the checkpoint is incomplete") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a manifest ({type(error).__name__})") from error
    if got != wanted:
        raise CheckpointError(f"{file}: got SHA-256 {got}, wanted {wanted}; the manifest has changed")
    if folder.name != f"step-{manifest.step}":
        raise CheckpointError(f"{file}: belongs to step {manifest.step}, but its folder is named {folder.name}")
    check_sizes(folder, manifest)
    return manifest


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raise CheckpointError for a file that is missing or has a different size."""
    for record in manifest.files:
        path = folder / record.name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != record.size:
            raise CheckpointError(f"{path}: got {path.stat().st_size} bytes, wanted {record.size}")


def check_hashes(folder: Path, manifest: Manifest, part: int = 0, num_parts: int = 1) -> None:
    """Raise CheckpointError for a file whose content has changed. Each rank may check one part of the files."""
    for record in manifest.files[part::num_parts]:
        PROGRESS.tick()
        got = sha256(folder / record.name)
        if got != record.sha256:
            raise CheckpointError(f"{folder / record.name}: got SHA-256 {got}, wanted {record.sha256}")


def steps(checkpoints: Path) -> list[int]:
    """Return the steps of the published checkpoints, oldest first."""
    names = [entry.name for entry in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name)))


def pointed(checkpoints: Path, pointer: str) -> Path | None:
    """Return the checkpoint that `latest` or `best` names; None if there is no such file.

    Raises CheckpointError if the named checkpoint does not exist.
    """
    file = checkpoints / pointer
    if not file.exists():
        return None
    name = file.read_bytes().decode("utf-8", errors="replace").strip()
    if not re.fullmatch(r"step-\d+", name) or not (checkpoints / name).is_dir():
        raise CheckpointError(f"{file}: names {name[:40]!r}, which is not a checkpoint in this folder")
    return checkpoints / name


def find_checkpoint(run: Path, wanted: bool | str) -> tuple[Path, Manifest]:
    """Return the checkpoint to resume from, after checking its manifest and sizes: `latest`, or the given path.

    Raises InputError if the run has no checkpoint. Raises CheckpointError, which names the file and an alternative, if
    the checkpoint is incomplete or has changed.
    """
    checkpoints = run / "checkpoints"
    if not run.exists():
        raise InputError(f"run.resume={wanted}: there is no run at {run}. Remove run.resume to start it")
    if not steps(checkpoints):
        raise InputError(f"run.resume={wanted}: {run} has no checkpoint. Choose another run.name, or delete the folder")
    try:
        folder = _named(checkpoints, wanted) if isinstance(wanted, str) else pointed(checkpoints, LATEST)
        if folder is None:
            raise CheckpointError(f"{checkpoints / LATEST}: missing")
        return folder, read_manifest(folder)
    except CheckpointError as error:
        raise with_alternative(error, run) from error


def saved_config(run: Path, wanted: bool | str) -> tuple[Path, str]:
    """Return the checkpoint to resume from and its options as YAML; raise the errors of find_checkpoint."""
    folder, manifest = find_checkpoint(run, wanted)
    config_only = tuple(record for record in manifest.files if record.name == CONFIG)
    try:
        check_hashes(folder, replace(manifest, files=config_only))
    except CheckpointError as error:
        raise with_alternative(error, run) from error
    return folder, (folder / CONFIG).read_text("utf-8")


def with_alternative(error: CheckpointError, run: Path) -> CheckpointError:
    """Add the newest intact checkpoint of the run to the message, or that there is none."""
    checkpoints = run / "checkpoints"
    for step in reversed(steps(checkpoints)):
        folder = checkpoints / f"step-{step}"
        try:
            check_hashes(folder, read_manifest(folder))
        except CheckpointError:
            continue
        return CheckpointError(f"{error}. {folder} is intact: continue from it with run.resume={folder}")
    return CheckpointError(f"{error}. No checkpoint of {run} is intact: start again with another run.name")


def _named(checkpoints: Path, path: str) -> Path:
    folder = Path(path)
    if folder.resolve().parent != checkpoints.resolve():
        raise InputError(f"run.resume={path}: not a checkpoint of this run; wanted one of {checkpoints}/step-*")
    if not folder.is_dir():
        existing = ", ".join(f"step-{step}" for step in steps(checkpoints))
        raise InputError(f"run.resume={path}: no such checkpoint; wanted one of {existing}")
    return checkpoints / folder.resolve().name


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
