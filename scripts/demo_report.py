"""Show the results of `make demo`: reward-model accuracy, scores before and after PPO, and three responses."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlhf_cli.system.text import printable


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def figures(rm: Path, ppo: Path) -> Table:
    """Return the table of results."""
    reward = json.loads((rm / "summary.json").read_text("utf-8"))["after"]
    held_out = json.loads((ppo / "summary.json").read_text("utf-8"))["held_out"]
    steps = [record for record in lines(ppo / "metrics.jsonl") if "kl" in record]
    table = Table("", "before", "after", "difference (95 % interval)", title="Demo", title_justify="left")
    accuracy, longer = reward["eval/accuracy"], reward["eval/longer_wins_accuracy"]
    table.add_row("reward model: accuracy on unseen situations", "", f"{accuracy:.3f}", "")
    table.add_row("  baseline: the longer response wins", "", f"{longer:.3f}", f"{accuracy - longer:+.3f}")
    for mode, row in held_out.items():
        change = f"{row['difference_mean']:+.2f} ({row['difference_low']:+.2f} to {row['difference_high']:+.2f})"
        before, after = f"{row['score_before']:.2f}", f"{row['score_after']:.2f}"
        table.add_row(f"PPO: mean score on {row['num_prompts']} unseen prompts, {mode}", before, after, change)
        table.add_row(
            "  responses that end with EOS", f"{row['eos_rate_before']:.0%}", f"{row['eos_rate_after']:.0%}", ""
        )
    table.add_row("KL to the reference, nats per response", f"{steps[0]['kl']:.2f}", f"{steps[-1]['kl']:.2f}", "")
    return table


def responses(ppo: Path, count: int) -> Table:
    """Return prompts with their responses before and after PPO."""
    greedy = [record for record in lines(ppo / "samples.jsonl") if record["mode"] == "greedy"]
    before, after = ([record for record in greedy if record["stage"] == stage] for stage in ("before", "after"))
    table = Table(
        "prompt",
        "before",
        "after",
        title="Responses to unseen prompts (greedy, with scores)",
        title_justify="left",
        show_lines=True,
    )
    pairs = list(zip(before, after, strict=True))
    for old, new in pairs[:: max(1, len(pairs) // count)][:count]:
        cells = (old["prompt"], f"[{old['score']:+.2f}] {old['response']}", f"[{new['score']:+.2f}] {new['response']}")
        table.add_row(*(escape(printable(cell)) for cell in cells))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rm", type=Path, help="run folder of the reward model")
    parser.add_argument("ppo", type=Path, help="run folder of PPO")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(figures(options.rm, options.ppo))
    console.print(responses(options.ppo, count=3))
    console.print(f"all responses: {options.ppo / 'samples.jsonl'}; all steps: {options.ppo / 'metrics.jsonl'}")
    console.print(f"reports for a browser: {options.rm / 'report.html'} and {options.ppo / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
