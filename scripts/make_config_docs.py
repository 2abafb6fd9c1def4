"""Write docs/config.md from the schema: every option with type, default and description."""

from __future__ import annotations

import sys
import textwrap
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
        "Which options exist, and what are their defaults? `make docs` generates this page from",
        "`rlhf_cli/config/schema.py`, so do not edit it. Experiments (`conf=`) and groups may set other",
        "defaults: `rlhf show-config COMMAND conf=...` prints the options of a run.",
        "",
        "## Experiments",
        "",
        "| command | purpose |",
        "|---|---|",
        *(f"| `rlhf {e.command} conf={e.name}` | {e.purpose} |" for e in experiments()),
        "",
        "## Groups",
        "",
    ]
    for group, names in groups().items():
        listed = f"* `{group}=`: {', '.join(f'`{name}`' for name in names)}"
        lines += textwrap.wrap(listed, 100, subsequent_indent="  ", break_on_hyphens=False)
    lines += ["", "For the reward model of `train-ppo`, write `model@reward_model=NAME`."]
    for command in COMMANDS:
        lines += ["", f"## rlhf {command}", "", "| key | type | default | description |", "|---|---|---|---|"]
        for option in options(command):
            kind = option.type.replace("|", " / ")
            lines.append(f"| `{option.key}` | {kind} | `{option.default}` | {option.doc.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", DOCS / "config.md", render))
