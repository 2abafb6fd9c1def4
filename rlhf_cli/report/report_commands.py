"""The commands `rlhf report RUN_DIR` and `rlhf compare RUN_DIR RUN_DIR ...`."""

from __future__ import annotations

from argparse import ArgumentError, ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rich.table
from rich.text import Text

from rlhf_cli.config.errors import InputError
from rlhf_cli.report.compare_runs import compare, comparison_sections
from rlhf_cli.report.html.blocks import Table, short
from rlhf_cli.report.html.html_page import render_page, write_page, write_report
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
        found = compare(folders)
        write_page(render_page(" and ".join(found.runs), "", comparison_sections(found)), target)
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


def _parse(args: list[str], usage: str) -> tuple[list[Path], Path | None]:
    """Return the run folders and the value of --output."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--output", type=Path)
    try:
        given, unknown = parser.parse_known_intermixed_args(args)
    except ArgumentError as error:
        raise InputError(f"{error}; {usage.splitlines()[0]}") from error
    if unknown:
        raise InputError(f"unknown option {unknown[0]}; {usage.splitlines()[0]}")
    return given.folders, given.output


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
