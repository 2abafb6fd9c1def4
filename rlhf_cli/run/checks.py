"""The checks that a run makes on its models and data before the first update.

Figures are measured on a few probes: prompts with sampled responses, or rows of preferences. All
ranks use the same probes, and the largest figure of any rank counts. docs/correctness.md justifies
the bounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import CheckConfig, DType, ModelConfig
from rlhf_cli.engine import distributed
from rlhf_cli.report.check_table import Check
from rlhf_cli.report.reporter import Reporter

Item = TypeVar("Item")


@dataclass(frozen=True)
class Bounds:
    """The largest differences that rounding explains in one floating-point type."""

    same: float  # same weights, same batch: nats or score
    padded: float  # same text in another batch: nats, mean over tokens
    score: float  # same text in another batch: score, relative to scores above 1
    drawn: float  # probability between a random number and its token's interval, mean over tokens
    clipped: float  # share of tokens that are clipped in the update


# float32 rounds at 6e-8; a few hundred additions in each of some dozen layers stay below 1e-4.
# bfloat16 rounds at 4e-3, so logits of size 16 are off by some hundredths. Another batch shape adds
# in another order, so no test of a single token can be tight. Means over tokens can: a mistake in
# masks or positions moves them by tenths or more.
FLOAT32 = Bounds(same=1e-5, padded=1e-4, score=1e-3, drawn=1e-4, clipped=0.0)
BFLOAT16 = Bounds(same=1e-3, padded=0.05, score=0.15, drawn=0.01, clipped=0.02)


def bounds_of(*models: ModelConfig) -> Bounds:
    """Return the bounds for models whose outputs are compared: those of the coarsest type."""
    return BFLOAT16 if any(model.dtype is DType.bfloat16 for model in models) else FLOAT32


def spread(items: Sequence[Item], lengths: Sequence[int], size: int) -> list[Item]:
    """Pick `size` items, or all of them, evenly spaced from the shortest to the longest."""
    order = sorted(range(len(items)), key=lambda index: lengths[index])
    size = min(size, len(items))
    last = max(size - 1, 1)
    return [items[order[number * (len(items) - 1) // last]] for number in range(size)]


def report_checks(check: Callable[[], list[Check]], config: CheckConfig, report: Reporter) -> None:
    """Run the checks and show them; raise InputError if one failed and check.strict is set."""
    start = time.perf_counter()
    checks = check()
    report.checks(checks, time.perf_counter() - start)
    failed = [check.name for check in checks if check.status == "FAIL"]
    if failed and config.strict:
        raise InputError(
            f"{len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}. Fix the failed checks above, or set "
            "check.strict=false to continue anyway"
        )


def largest(*differences: Tensor) -> float:
    """Return the largest absolute value, or NaN if there is one; Python's max would miss it."""
    return float(torch.cat([difference.flatten() for difference in differences]).abs().max())


def relative(scores: Tensor, others: Tensor) -> float:
    """Return the largest difference, divided by the largest score if that is above 1."""
    return largest(scores - others) / max(1.0, largest(scores))


def worst_of_all_ranks(checks: list[Check]) -> list[Check]:
    """Return the checks with the largest figure of any rank; collective."""
    figures = distributed.gather_all([check.figure for check in checks])
    return [
        replace(check, figure=max(column, key=lambda figure: math.inf if math.isnan(figure) else figure))
        for check, column in zip(checks, zip(*figures, strict=True), strict=True)
    ]
