"""Exit with 1 unless CHANGELOG.md begins with entries for the package's version or under Unreleased."""

import argparse
import re
import sys
from pathlib import Path

import rlhf_cli

CHANGELOG = Path(__file__).resolve().parent.parent / "CHANGELOG.md"


def problem(text: str, version: str) -> str | None:
    """Return what is wrong with a changelog, or None."""
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    if not sections or not sections[0].startswith(("[Unreleased]", f"[{version}]")):
        return f"the first section must be [Unreleased] or [{version}]"
    if not re.search(r"^- ", sections[0], flags=re.MULTILINE):
        return f"the section {sections[0].splitlines()[0]} has no entries"
    return None


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    found = problem(CHANGELOG.read_text("utf-8"), rlhf_cli.__version__)
    if found:
        print(f"CHANGELOG.md: {found}")
    return int(found is not None)


if __name__ == "__main__":
    sys.exit(main())
