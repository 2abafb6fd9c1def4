"""`rlhf report RUN_DIR` and `rlhf compare RUN_DIR RUN_DIR ...`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rlhf_cli.config.errors import InputError
from rlhf_cli.report.compare_runs import Comparison, compare
from rlhf_cli.report.html.blocks import Table as Block
from rlhf_cli.report.html.blocks import short
from rlhf_cli.report.html.comparison_page import comparison_sections, tables
from rlhf_cli.report.html.html_page import page, write_page, write_report
from rlhf_cli.system.terminal import console
from rlhf_cli.system.text import printable

REPORT_USAGE = """\
usage: rlhf report RUN_DIR [--output FILE]

Write what a run did as one HTML file that opens anywhere, RUN_DIR/report.html unless told otherwise. Runs that are
still going on, were interrupted or have failed have a report too.
"""
COMPARE_USAGE = """\
usage: rlhf compare RUN_DIR RUN_DIR [...] [--output FILE]

Show which options of runs differ and how they ended, with paired intervals on the prompts or pairs they share; write
the same with all curves overlaid as one HTML file, compare.html unless told otherwise.
"""


def report(args: list[str]) -> int:
    """Write the report of a run."""
    if "--help" in args or "-h" in args:
        print(REPORT_USAGE, end="")
        return 0
    folders, output = _words(args, REPORT_USAGE)
    if len(folders) != 1:
        raise InputError(f"report wants one run folder, got {len(folders)}; {REPORT_USAGE.splitlines()[0]}")
    if output is not None:
        _require_writable(output)
    with _readable():
        print(printable(f"report: {write_report(folders[0], output)}"))
    return 0


def compare_runs(args: list[str]) -> int:
    """Compare runs in the terminal and in a page."""
    if "--help" in args or "-h" in args:
        print(COMPARE_USAGE, end="")
        return 0
    folders, output = _words(args, COMPARE_USAGE)
    target = output or Path("compare.html")
    _require_writable(target)
    with _readable():
        found = compare(folders)
        write_page(page(" and ".join(found.names), "", comparison_sections(found)), target)
    _print(found)
    print(printable(f"comparison: {target}"))
    return 0


def _words(args: list[str], usage: str) -> tuple[list[Path], Path | None]:
    folders: list[Path] = []
    output: Path | None = None
    words = iter(args)
    for word in words:
        name, given, value = word.partition("=")
        if name == "--output":
            value = value if given else next(words, "")
            if not value:
                raise InputError(f"--output wants a file; {usage.splitlines()[0]}")
            if output is not None:
                raise InputError("--output was given twice")
            output = Path(value)
        elif word.startswith("-"):
            raise InputError(f"unknown option {word}; {usage.splitlines()[0]}")
        else:
            folders.append(Path(word))
    return folders, output


@contextmanager
def _readable() -> Iterator[None]:
    """Turn what the system says of a file that may not be read into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename or 'a file'}: cannot be read: {error.strerror}") from error


def _require_writable(target: Path) -> None:
    if target.suffix.lower() not in (".html", ".htm"):  # most likely another file of the run
        raise InputError(f"{target}: wanted a file that ends in .html")
    if target.is_dir():
        raise InputError(f"{target} is a folder; wanted a file")
    if not target.parent.is_dir():
        raise InputError(f"{target}: its folder does not exist")


def _print(found: Comparison) -> None:
    options, figures = tables(found)
    shown = console()
    if not options:
        shown.print("no option differs")
    for block in (*options, *figures):
        shown.print(_drawn(block))
    for note in found.notes:
        shown.print(Text(note))


def _drawn(block: Block) -> Table:
    made = Table(title=block.title, title_justify="left")
    for place, column in enumerate(block.columns):
        made.add_column(Text(column), overflow="fold", justify="left" if place == 0 else "right")
    for row in block.rows:
        made.add_row(*(Text(short(cell)) for cell in row))
    return made
