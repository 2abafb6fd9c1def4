"""Write reports: HTML files that need neither a network nor any other file."""

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
from rlhf_cli.report.html.blocks import Responses, Section, short
from rlhf_cli.report.html.plots import Plot
from rlhf_cli.report.html.ppo_page import ppo_sections
from rlhf_cli.report.html.reward_page import reward_sections
from rlhf_cli.report.run_records import RunRecords
from rlhf_cli.system.text import one_line, printable

REPORT = "report.html"


def write_report(folder: Path, target: Path | None = None) -> Path:
    """Write the report of a run, by default into its folder, and return the file.

    Raises InputError if the folder is not a run folder.
    """
    run = RunRecords(folder)
    sections = ppo_sections(run) if run.is_ppo else reward_sections(run)
    target = target or folder / REPORT
    write_page(render_page(run.name, str(run.run.get("command", "")), sections), target)
    return target


def leave_report(folder: Path) -> str:
    """Write the report of a run that ends, and return a message. Never raises."""
    try:
        return f"report: {write_report(folder)}"
    except Exception as error:
        return f"no report: {type(error).__name__}: {one_line(error, 300)}"


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the HTML of a page."""
    blocks = [block for section in sections for block in section.blocks]
    plots = [block for block in blocks if isinstance(block, Plot)]
    rows = [row for block in blocks if isinstance(block, Responses) for row in block.rows]
    data = {
        "plots": [plot.figure for plot in plots],
        "responses": [[[printable(token) for token in row["tokens"]], row["kl"]] for row in rows],
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"printable": printable, "short": short, "id": id, "kind": lambda one: type(one).__name__}
    return environment.from_string(_asset("page.jinja")).render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        plot_numbers={id(plot): number for number, plot in enumerate(plots)},
        style=_asset("style.css"),
        script=_asset("page.js"),
        plotly=_pack((files("plotly") / "package_data" / "plotly.min.js").read_bytes()),
        data=_pack(json.dumps(data, ensure_ascii=False, allow_nan=False).encode()),
    )


def write_page(text: str, target: Path) -> None:
    """Write a page atomically: a reader sees the old one or the new one."""
    content = text.encode("utf-8", "replace")  # JSON may hold lone surrogates
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise InputError(f"{target}: cannot be written: {reason}; use --output=FILE.html for another place") from error


def _asset(name: str) -> str:
    return (files("rlhf_cli.report.html") / name).read_text("utf-8")


def _pack(content: bytes) -> str:
    """Compress bytes to text that the script of the page unpacks; the same text each time."""
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")
