"""Options that limit a script to a random sample of its work, which a later run can repeat."""

from __future__ import annotations

import argparse
import math
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

REPOSITORY = Path(__file__).resolve().parent.parent
Item = TypeVar("Item")


def commit_seed() -> int:
    """Return a number derived from the current git commit, or 0 outside a git repository."""
    words = ["git", "rev-parse", "--short=7", "HEAD"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return int(done.stdout, 16) if done.returncode == 0 else 0


def add_sample_options(parser: argparse.ArgumentParser) -> None:
    """Add --sample and --seed."""
    parser.add_argument("--sample", type=float, default=1.0, metavar="SHARE", help="run this share, chosen at random")
    parser.add_argument("--seed", type=int, help="seed of the sample (default: derived from the git commit)")


def sampled(items: Sequence[Item], options: argparse.Namespace) -> list[Item]:
    """Return the share of the items that --sample asks for, in their order, and print how to repeat it."""
    if options.sample >= 1:
        return list(items)
    seed = commit_seed() if options.seed is None else options.seed
    count = math.ceil(options.sample * len(items))
    print(f"{count} of {len(items)} run; repeat with --sample {options.sample:g} --seed {seed}", flush=True)
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), count))]
