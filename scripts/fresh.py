"""What the scripts have in common that write a page of docs/: to write it, or to say that it is stale."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main(description: str, page: Path, render: Callable[[], str]) -> int:
    """Write a page; with --check write nothing, and return 1 where it is not as it would be written."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 when the file is stale; write nothing")
    if not parser.parse_args().check:
        page.write_text(render(), "utf-8")
        return 0
    if page.exists() and page.read_text("utf-8") == render():
        return 0
    print(f"{page.name} is stale: run `make docs`")
    return 1
