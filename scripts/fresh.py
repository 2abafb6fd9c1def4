"""Shared by the scripts that generate a page of docs/: write the page, or check that it is up to date."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main(description: str, page: Path, render: Callable[[], str]) -> int:
    """Write a page; with --check write nothing, and return 1 if the page would change."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    if not parser.parse_args().check:
        page.write_text(render(), "utf-8")
        return 0
    if page.exists() and page.read_text("utf-8") == render():
        return 0
    print(f"docs/{page.name} is out of date: run `make docs`")
    return 1
