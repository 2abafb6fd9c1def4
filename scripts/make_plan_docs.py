"""Write docs/presets.md: the plan of every preset for A100s, as `rlhf plan` prints it.

usage: python scripts/make_plan_docs.py [--check]   (--check: exit 1 when the file is stale, write nothing)
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fresh import DOCS, main

from rlhf_cli.config.option_docs import experiments
from rlhf_cli.plan.plan_command import show

HEAD = """\
# Presets for A100s, and their plans

Made by `make docs`; do not edit. What `rlhf plan` says of each preset, on any machine; no preset has been run on a GPU
yet. How the figures come about, and how far they are off: [memory.md](memory.md); how to start them:
[multi-gpu.md](multi-gpu.md).

They plan a shape of 7B (or 1B) with random weights. A run takes yours: `model=pretrained model.path=FOLDER_OR_HUB_ID`,
`data.train=FILE`; `rlhf plan` takes the same words, and another shape of Qwen's kind by `model=qwen_7b`.
"""


def render() -> str:
    """Return the page."""
    page = [HEAD]
    for one in experiments():
        if not one.name.endswith("a100"):
            continue
        words = [one.command, f"conf={one.name}"]
        with contextlib.redirect_stdout(io.StringIO()) as told:
            show(words)
        text = "\n".join(line.rstrip() for line in told.getvalue().rstrip().splitlines())
        command = f"```bash\nrlhf plan {' '.join(words)}\n```"
        page.append(f"## {one.name}\n\n{one.purpose}\n\n{command}\n\n```text\n{text}\n```\n")
    return "\n".join(page)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", DOCS / "presets.md", render))
