"""`rlhf checkpoints RUN_DIR [--verify]`: what a run can go on from. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rlhf_cli.config.errors import CheckpointError, InputError
from rlhf_cli.engine.checkpoint_manifest import BEST, LATEST, check_hashes, pointed, read_manifest, steps
from rlhf_cli.system.durable_files import folder_bytes
from rlhf_cli.system.run_status import read_status
from rlhf_cli.system.terminal import console
from rlhf_cli.system.text import printable


@dataclass(frozen=True)
class Listed:
    """One checkpoint as it is listed."""

    name: str
    num_bytes: int
    ranks: str
    written: str
    marks: str
    fault: str  # empty: none was found


def show(args: list[str]) -> int:
    """Print the checkpoints of a run; return 5 where the newest cannot be gone on from, or --verify finds a fault."""
    folders = [arg for arg in args if not arg.startswith("-")]
    unknown = [arg for arg in args if arg.startswith("-") and arg != "--verify"]
    if len(folders) != 1 or unknown:
        raise InputError(f"usage: rlhf checkpoints RUN_DIR [--verify], got {' '.join(args) or 'nothing'}")
    run, verify = Path(folders[0]), "--verify" in args
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder")
    rows = listed(run, verify)
    faults = [row.fault for row in rows if row.fault] + pointer_faults(run / "checkpoints")
    _print(run, rows, verify)
    for fault in faults:
        print(printable(fault))
    if status := read_status(run):
        reason = f": {status['reason']}" if "reason" in status else ""
        print(printable(f"status: {status['state']} at step {status['step']}{reason}"))
    if verify:
        return CheckpointError.code if faults else 0
    newest = next((row for row in rows if LATEST in row.marks), None)
    return CheckpointError.code if rows and (newest is None or newest.fault) else 0


def listed(run: Path, verify: bool) -> list[Listed]:
    """Return the checkpoints of a run, oldest first; verify: read every byte of them."""
    folder = run / "checkpoints"
    marks = {pointer: _pointed_or_none(folder, pointer) for pointer in (LATEST, BEST)}
    return [_row(folder / f"step-{step}", marks, verify) for step in steps(folder)]


def pointer_faults(folder: Path) -> list[str]:
    """Say what is wrong with `latest` and `best`."""
    faults = []
    for pointer in (LATEST, BEST):
        try:
            if pointed(folder, pointer) is None and pointer == LATEST and steps(folder):
                faults.append(f"{folder / LATEST}: missing")
        except CheckpointError as error:
            faults.append(str(error))
    return faults


def _row(folder: Path, marks: dict[str, Path | None], verify: bool) -> Listed:
    ranks, written, fault = "?", "?", ""
    try:
        manifest = read_manifest(folder)
        ranks, written = str(manifest.world_size), manifest.written
        if verify:
            check_hashes(folder, manifest)
    except CheckpointError as error:
        fault = str(error)
    own = " ".join(pointer for pointer, target in marks.items() if target == folder)
    return Listed(folder.name, folder_bytes(folder), ranks, written, own, fault)


def _pointed_or_none(folder: Path, pointer: str) -> Path | None:
    try:
        return pointed(folder, pointer)
    except CheckpointError:
        return None


def _print(run: Path, rows: list[Listed], verify: bool) -> None:
    if not rows:
        console(soft_wrap=True).print(f"{run}: no checkpoint", markup=False, highlight=False)
        return
    table = Table(title=Text(f"{run}/checkpoints"), title_justify="left")
    for name in ("checkpoint", "MiB", "ranks", "written", "", "every byte checked" if verify else "files and sizes"):
        table.add_column(name, justify="right" if name == "MiB" else "left")
    for row in rows:
        size = f"{row.num_bytes / 2**20:.1f}"
        table.add_row(row.name, size, row.ranks, row.written, row.marks, "FAULT, see below" if row.fault else "valid")
    console().print(table)
