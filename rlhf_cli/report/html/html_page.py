"""Blocks to one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from rlhf_cli.config.errors import InputError
from rlhf_cli.report.html.blocks import Answers, Plot, Section, short
from rlhf_cli.report.html.ppo_page import ppo_sections
from rlhf_cli.report.html.reward_page import reward_sections
from rlhf_cli.report.run_records import read_run
from rlhf_cli.system.text import one_line, printable

REPORT = "report.html"


def write_report(folder: Path, target: Path | None = None) -> Path:
    """Write the report of a run, into its folder unless told otherwise; return the file.

    Raises InputError where the folder is not that of a run.
    """
    run = read_run(folder)
    found = ppo_sections(run) if run.is_ppo else reward_sections(run)
    command = str(run.run.get("command", ""))
    target = target or folder / REPORT
    write_page(page(run.name, command, found), target)
    return target


def leave_report(folder: Path) -> str:
    """Write the report of a run that ends; return what to say. It never raises: no run is to fail for its report."""
    try:
        return f"report: {write_report(folder)}"
    except Exception as error:
        return f"no report: {type(error).__name__}: {one_line(error, 300)}"


def page(title: str, subtitle: str, found: Sequence[Section]) -> str:
    """Return the HTML of a page."""
    plots = [block for section in found for block in section.blocks if isinstance(block, Plot)]
    answers = [block for section in found for block in section.blocks if isinstance(block, Answers)]
    data = {
        "plots": [plot.as_data() for plot in plots],
        "pieces": [[[printable(piece) for piece in pieces], kl] for block in answers for pieces, kl in block.pieces],
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"printable": printable, "short": short, "cell": short, "id": id}
    template = environment.from_string(_asset("page.jinja"))
    return template.render(
        title=title,
        subtitle=subtitle,
        sections=found,
        plot_ids={id(plot): place for place, plot in enumerate(plots)},
        style=_asset("style.css"),
        script=_asset("page.js"),
        plotly=_packed((files("plotly") / "package_data" / "plotly.min.js").read_bytes()),
        data=_packed(json.dumps(data, ensure_ascii=False, allow_nan=False).encode()),
    )


def write_page(text: str, target: Path) -> None:
    """Write a page at once: a reader sees the old one or the new one."""
    content = text.encode("utf-8", "replace")  # a lone surrogate, which JSON may hold, is no text
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        aside.replace(target)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise InputError(f"{target}: cannot be written: {reason}; --output=FILE.html names another place") from error


def _asset(name: str) -> str:
    return (files("rlhf_cli.report.html") / name).read_text("utf-8")


def _packed(content: bytes) -> str:
    """Return bytes as text that the page's script unpacks; the same each time."""
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")
