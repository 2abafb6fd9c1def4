"""Write docs/config.md from the schema: every option with type, default and doc.

usage: python scripts/make_config_docs.py [--check]   (--check: exit 1 when the file is stale, write nothing)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rlhf_cli.config.docs import experiments, groups, options
from rlhf_cli.config.schema import COMMANDS

TARGET = Path(__file__).resolve().parent.parent / "docs" / "config.md"


def render() -> str:
    """Return the page."""
    lines = [
        "# Options",
        "",
        "Made by `make docs` from `rlhf_cli/config/schema.py`; do not edit. The defaults are the schema's: an",
        "experiment (`conf=`) or a group may set others; `rlhf show-config COMMAND conf=...` prints what holds.",
        "",
        "## Experiments",
        "",
        "| command | purpose |",
        "|---|---|",
        *(f"| `rlhf {e.command} conf={e.name}` | {e.purpose} |" for e in experiments()),
        "",
        "## Groups",
        "",
        *(f"* `{group}=`: {', '.join(f'`{name}`' for name in names)}" for group, names in groups().items()),
        "",
        "For the reward model of `train-ppo`, write `model@reward_model=NAME`.",
    ]
    for command in COMMANDS:
        lines += ["", f"## rlhf {command}", "", "| key | type | default | |", "|---|---|---|---|"]
        for option in options(command):
            kind = option.type.replace("|", " / ")
            lines.append(f"| `{option.key}` | {kind} | `{option.default}` | {option.doc.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 when the file is stale; write nothing")
    if parser.parse_args().check:
        if not TARGET.exists() or TARGET.read_text("utf-8") != render():
            print(f"{TARGET.name} is stale: run `make docs`")
            return 1
        return 0
    TARGET.write_text(render(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
