"""The command `rlhf checkpoints RUN_DIR [--verify]`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from rlhf_cli.config.errors import CheckpointError, InputError
from rlhf_cli.engine.checkpoint_manifest import BEST, LATEST, check_hashes, pointed, read_manifest, steps
from rlhf_cli.system.durable_files import folder_bytes
from rlhf_cli.system.run_status import read_status
from rlhf_cli.system.terminal import console
from rlhf_cli.system.text import printable

USAGE = """\
usage: rlhf checkpoints RUN_DIR [--verify]

List the checkpoints of a run and say which one a run would resume from. --verify reads every file
and compares it with its checksum. Exit code 5: no checkpoint can be resumed from, or one is damaged."""


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint of the list."""

    name: str
    num_bytes: int
    num_ranks: str
    written: str
    pointers: str  # latest, best or both
    fault: str  # empty if none was found


def show(args: list[str]) -> int:
    """Print a run's checkpoints. Return 5 if it cannot resume, or if --verify finds a fault."""
    if "--help" in args or "-h" in args:
        print(USAGE)
        return 0
    folders = [arg for arg in args if not arg.startswith("-")]
    unknown = [arg for arg in args if arg.startswith("-") and arg != "--verify"]
    if len(folders) != 1 or unknown:
        raise InputError(f"{USAGE.splitlines()[0]}, got {' '.join(args) or 'nothing'}")
    run, verify = Path(folders[0]), "--verify" in args
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder")
    rows = list_checkpoints(run, verify)
    faults = [row.fault for row in rows if row.fault] + pointer_faults(run / "checkpoints")
    if rows:
        console().print(_table(run, rows, verify))
    else:
        print(printable(f"{run}: no checkpoint"))
    for fault in faults:
        print(printable(fault))
    if status := read_status(run):
        reason = f": {status['reason']}" if "reason" in status else ""
        print(printable(f"status: {status['state']} at step {status['step']}{reason}"))
    newest = next((row for row in rows if LATEST in row.pointers), None)
    is_bad = bool(faults) if verify else bool(rows) and (newest is None or newest.fault != "")
    return CheckpointError.code if is_bad else 0


def list_checkpoints(run: Path, verify: bool) -> list[CheckpointRow]:
    """Return the checkpoints of a run, the oldest first. verify: read and check every byte."""
    folder = run / "checkpoints"
    targets = {}
    for pointer in (LATEST, BEST):
        try:
            targets[pointer] = pointed(folder, pointer)
        except CheckpointError:  # pointer_faults reports it
            targets[pointer] = None
    rows = []
    for checkpoint in (folder / f"step-{step}" for step in steps(folder)):
        num_ranks, written, fault = "?", "?", ""
        try:
            manifest = read_manifest(checkpoint)
            num_ranks, written = str(manifest.world_size), manifest.written
            if verify:
                check_hashes(checkpoint, manifest)
        except CheckpointError as error:
            fault = str(error)
        pointers = " ".join(pointer for pointer, target in targets.items() if target == checkpoint)
        rows.append(CheckpointRow(checkpoint.name, folder_bytes(checkpoint), num_ranks, written, pointers, fault))
    return rows


def pointer_faults(folder: Path) -> list[str]:
    """Return what is wrong with the files `latest` and `best`."""
    faults = []
    for pointer in (LATEST, BEST):
        try:
            if pointed(folder, pointer) is None and pointer == LATEST and steps(folder):
                faults.append(f"{folder / LATEST}: missing")
        except CheckpointError as error:
            faults.append(str(error))
    return faults


def _table(run: Path, rows: list[CheckpointRow], verify: bool) -> Table:
    checked = "every byte checked" if verify else "files and sizes"
    columns: list[str | Column] = ["checkpoint", Column("MiB", justify="right"), "ranks", "written", "", checked]
    table = Table(*columns, title=Text(f"{run}/checkpoints"), title_justify="left")
    for row in rows:
        state = "FAULT, see below" if row.fault else "valid"
        table.add_row(row.name, f"{row.num_bytes / 2**20:.1f}", row.num_ranks, row.written, row.pointers, state)
    return table
