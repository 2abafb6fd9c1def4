"""The commands on run folders: `rlhf report`, `rlhf compare` and `rlhf checkpoints`. Imports no torch."""

from __future__ import annotations

from argparse import ArgumentError, ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import rich.table
from rich.text import Text

from rlhf_cli.config.errors import CheckpointError, InputError
from rlhf_cli.engine.checkpoint_manifest import BEST, LATEST, check_hashes, pointed, read_manifest, steps
from rlhf_cli.report.compare_runs import Comparison
from rlhf_cli.report.html.blocks import Table, short
from rlhf_cli.report.html.html_page import render_page, write_page, write_report
from rlhf_cli.system.durable_files import folder_bytes
from rlhf_cli.system.run_status import read_status
from rlhf_cli.system.terminal import console
from rlhf_cli.system.text import printable

REPORT_USAGE = """\
usage: rlhf report RUN_DIR [--output FILE]

Write the report of a run as one HTML file that opens anywhere; by default RUN_DIR/report.html. The run may still be
running, or have been interrupted, or have failed.
"""
COMPARE_USAGE = """\
usage: rlhf compare RUN_DIR RUN_DIR [...] [--output FILE]

Show which options differ and how the runs ended, with paired intervals on the prompts or pairs that they share. Write
the same, with all curves overlaid, as one HTML file; by default compare.html.
"""
CHECKPOINTS_USAGE = """\
usage: rlhf checkpoints RUN_DIR [--verify]

List the checkpoints of a run and say which one a run would resume from. --verify reads every file
and compares it with its checksum. Exit code 5: no checkpoint can be resumed from, or one is damaged.
"""


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint of the list."""

    name: str
    num_bytes: int
    num_ranks: str
    written: str
    pointers: str  # latest, best or both
    fault: str  # empty if none was found


def report(args: list[str]) -> int:
    """Write the report of a run."""
    if "--help" in args or "-h" in args:
        print(REPORT_USAGE, end="")
        return 0
    folders, output = _parse(args, REPORT_USAGE)
    if len(folders) != 1:
        raise InputError(f"report needs one run folder, got {len(folders)}; {REPORT_USAGE.splitlines()[0]}")
    if output is not None:
        _require_writable(output)
    with _input_errors():
        print(printable(f"report: {write_report(folders[0], output)}"))
    return 0


def compare_runs(args: list[str]) -> int:
    """Compare runs on the terminal and in a page."""
    if "--help" in args or "-h" in args:
        print(COMPARE_USAGE, end="")
        return 0
    folders, output = _parse(args, COMPARE_USAGE)
    target = output or Path("compare.html")
    _require_writable(target)
    with _input_errors():
        found = Comparison(folders)
        write_page(render_page(" and ".join(found.runs), "", found.sections()), target)
    terminal = console()
    if not found.options.rows:
        terminal.print("no option differs")
    for table in (found.options, found.metrics, found.paired):
        if table.rows:
            terminal.print(_terminal_table(table))
    for note in found.notes:
        terminal.print(Text(note))
    print(printable(f"comparison: {target}"))
    return 0


def checkpoints(args: list[str]) -> int:
    """Print a run's checkpoints. Return 5 if it cannot resume, or if --verify finds a fault."""
    if "--help" in args or "-h" in args:
        print(CHECKPOINTS_USAGE, end="")
        return 0
    folders = [Path(arg) for arg in args if not arg.startswith("-")]
    unknown = [arg for arg in args if arg.startswith("-") and arg != "--verify"]
    if len(folders) != 1 or unknown:
        raise InputError(f"{CHECKPOINTS_USAGE.splitlines()[0]}, got {' '.join(args) or 'nothing'}")
    [run], verify = folders, "--verify" in args
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder")
    rows = list_checkpoints(run, verify)
    faults = [row.fault for row in rows if row.fault] + pointer_faults(run / "checkpoints")
    if rows:
        console().print(_checkpoint_table(run, rows, verify))
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
    folder, rows = run / "checkpoints", []
    targets = {pointer: target for pointer, target, _ in _read_pointers(folder)}
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
    return [fault for _, _, fault in _read_pointers(folder) if fault]


def _read_pointers(folder: Path) -> Iterator[tuple[str, Path | None, str]]:
    """Yield each pointer, the checkpoint that it points to, and what is wrong with it."""
    for pointer in (LATEST, BEST):
        try:
            target = pointed(folder, pointer)
            is_missing = target is None and pointer == LATEST and bool(steps(folder))
            yield pointer, target, f"{folder / LATEST}: missing" if is_missing else ""
        except CheckpointError as error:
            yield pointer, None, str(error)


def _parse(args: list[str], usage: str) -> tuple[list[Path], Path | None]:
    """Return the run folders and the value of --output."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--output", type=Path, action="append", default=[])
    try:
        given, unknown = parser.parse_known_intermixed_args(args)
    except ArgumentError as error:
        raise InputError(f"{error}; {usage.splitlines()[0]}") from error
    if unknown:
        raise InputError(f"unknown option {unknown[0]}; {usage.splitlines()[0]}")
    if len(given.output) > 1:
        raise InputError("--output was given twice")
    return given.folders, next(iter(given.output), None)


@contextmanager
def _input_errors() -> Iterator[None]:
    """Raise InputError if the system cannot read a file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename or 'a file'}: cannot be read: {error.strerror}") from error


def _require_writable(target: Path) -> None:
    if target.suffix.lower() not in (".html", ".htm"):  # probably another file of the run
        raise InputError(f"{target}: --output needs a file that ends in .html")
    if target.is_dir():
        raise InputError(f"{target}: is a folder, but --output needs a file")
    if not target.parent.is_dir():
        raise InputError(f"{target}: its folder does not exist")


def _terminal_table(block: Table) -> rich.table.Table:
    table = rich.table.Table(title=block.title, title_justify="left")
    for i, column in enumerate(block.columns):
        table.add_column(Text(column), overflow="fold", justify="left" if i == 0 else "right")
    for row in block.rows:
        table.add_row(*(Text(short(cell)) for cell in row))
    return table


def _checkpoint_table(run: Path, rows: list[CheckpointRow], verify: bool) -> rich.table.Table:
    checked = "every byte checked" if verify else "files and sizes"
    columns: list[str | rich.table.Column] = [
        "checkpoint",
        rich.table.Column("MiB", justify="right"),
        "ranks",
        "written",
        "",
        checked,
    ]
    table = rich.table.Table(*columns, title=Text(f"{run}/checkpoints"), title_justify="left")
    for row in rows:
        state = "FAULT, see below" if row.fault else "valid"
        table.add_row(row.name, f"{row.num_bytes / 2**20:.1f}", row.num_ranks, row.written, row.pointers, state)
    return table
