"""Write docs/config.md from the schema: every option with type, default and doc.

usage: python scripts/make_config_docs.py [--check]   (--check: exit 1 when the file is stale, write nothing)
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fresh import DOCS, main

from rlhf_cli.config.option_docs import experiments, groups, options
from rlhf_cli.config.schema import COMMANDS


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


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", DOCS / "config.md", render))
