"""Which checkpoints a run has, and whether they are what was written. Imports no torch.

`checkpoints/step-N/` is one checkpoint; its `manifest.json`, written last, lists every file with its size and SHA-256,
and carries a hash of itself. `checkpoints/latest` names the newest one, `checkpoints/best` the best one.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
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
    """What a checkpoint holds."""

    step: int
    world_size: int
    written: str  # local time, ISO 8601
    files: tuple[FileRecord, ...]

    def write(self, folder: Path) -> None:
        """Write the manifest into its checkpoint, as the last of its files."""
        body = {
            "format": FORMAT,
            "step": self.step,
            "world_size": self.world_size,
            "written": self.written,
            "files": {record.name: {"size": record.size, "sha256": record.sha256} for record in self.files},
        }
        write_durably(folder / MANIFEST, json.dumps({**body, "manifest_sha256": _digest(body)}, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest and see that every file is there with its size; raise CheckpointError."""
    file = folder / MANIFEST
    try:
        body = json.loads(file.read_bytes())
        wanted = body.pop("manifest_sha256")
        got = _digest(body)
        if body["format"] != FORMAT:
            raise CheckpointError(f"{file}: format {body['format']}, this version reads format {FORMAT}")
        files = tuple(FileRecord(name, one["size"], one["sha256"]) for name, one in body["files"].items())
        manifest = Manifest(body["step"], body["world_size"], body["written"], files)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: missing; the checkpoint is not complete") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a manifest ({type(error).__name__})") from error
    if got != wanted:
        raise CheckpointError(f"{file}: its SHA-256 is {got}, it says {wanted}")
    if folder.name != f"step-{manifest.step}":
        raise CheckpointError(f"{file}: is of step {manifest.step}, in a folder named {folder.name}")
    check_sizes(folder, manifest)
    return manifest


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raise CheckpointError for a file that is missing or of another size."""
    for record in manifest.files:
        path = folder / record.name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != record.size:
            raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, the manifest says {record.size}")


def check_hashes(folder: Path, manifest: Manifest, part: int = 0, num_parts: int = 1) -> None:
    """Raise CheckpointError for a file with other content than was written; one rank may look at its part only."""
    for record in manifest.files[part::num_parts]:
        PROGRESS.tick()
        got = sha256(folder / record.name)
        if got != record.sha256:
            raise CheckpointError(f"{folder / record.name}: its SHA-256 is {got}, the manifest says {record.sha256}")


def steps(checkpoints: Path) -> list[int]:
    """Return the steps of the published checkpoints, oldest first."""
    names = [entry.name for entry in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name)))


def pointed(checkpoints: Path, pointer: str) -> Path | None:
    """Return the checkpoint that `latest` or `best` names; None where there is no such file.

    Raises CheckpointError where it names nothing that is there.
    """
    file = checkpoints / pointer
    if not file.exists():
        return None
    name = file.read_bytes().decode("utf-8", errors="replace").strip()
    if not re.fullmatch(r"step-\d+", name) or not (checkpoints / name).is_dir():
        raise CheckpointError(f"{file}: names {name[:40]!r}, which is no checkpoint here")
    return checkpoints / name


def to_resume(run: Path, wanted: bool | str) -> tuple[Path, Manifest]:
    """Return the checkpoint to go on from, complete by its manifest and sizes: `latest`, or the one named.

    Raises InputError where the run has none, and CheckpointError, which names the file and a way out, where it is not
    what was written.
    """
    checkpoints = run / "checkpoints"
    if not run.exists():
        raise InputError(f"run.resume={wanted}: there is no {run} to go on with; leave run.resume out to start it")
    if not steps(checkpoints):
        raise InputError(
            f"run.resume={wanted}: {run} has no checkpoint to go on from; give another run.name, or delete the folder"
        )
    try:
        folder = _named(checkpoints, wanted) if isinstance(wanted, str) else pointed(checkpoints, LATEST)
        if folder is None:
            raise CheckpointError(f"{checkpoints / LATEST}: missing")
        return folder, read_manifest(folder)
    except CheckpointError as error:
        raise with_way_out(error, run) from error


def saved_config(run: Path, wanted: bool | str) -> tuple[Path, str]:
    """Return the checkpoint to go on from and the options it was written with, as YAML; raises what to_resume does."""
    folder, manifest = to_resume(run, wanted)
    own = [record for record in manifest.files if record.name == CONFIG]
    try:
        check_hashes(folder, Manifest(manifest.step, manifest.world_size, manifest.written, tuple(own)))
    except CheckpointError as error:
        raise with_way_out(error, run) from error
    return folder, (folder / CONFIG).read_text("utf-8")


def with_way_out(error: CheckpointError, run: Path) -> CheckpointError:
    """Add to the message the newest checkpoint of the run that is whole, or that there is none."""
    checkpoints = run / "checkpoints"
    for step in reversed(steps(checkpoints)):
        folder = checkpoints / f"step-{step}"
        try:
            check_hashes(folder, read_manifest(folder))
        except CheckpointError:
            continue
        return CheckpointError(f"{error}; {folder} is whole: go on from it with run.resume={folder}")
    return CheckpointError(f"{error}; no checkpoint of {run} is whole: start anew with another run.name")


def _named(checkpoints: Path, path: str) -> Path:
    folder = Path(path)
    if folder.resolve().parent != checkpoints.resolve():
        raise InputError(f"run.resume={path}: not a checkpoint of this run, wanted one of {checkpoints}/step-*")
    if not folder.is_dir():
        have = ", ".join(f"step-{step}" for step in steps(checkpoints))
        raise InputError(f"run.resume={path}: no such checkpoint; there are: {have}")
    return checkpoints / folder.resolve().name


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
