"""What a run proves of its own models and data before the first update; docs/correctness.md argues the bounds.

Every figure is measured on a few probes: prompts of the run with responses that the policy samples, or rows of
preferences. All ranks look at the same probes, and the largest figure of any rank counts.
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
    """What rounding may do in one floating-point type."""

    same: float  # the same weights on the same batch: nats or score
    padded: float  # another batch around the same text: nats, mean over tokens
    score: float  # another batch around the same text: score, relative to scores above 1
    drawn: float  # probability between a draw and its token's interval, mean over tokens
    clipped: float  # share of tokens clipped in the update


# float32 rounds at 6e-8; a few hundred additions a layer and some dozen layers stay below 1e-4. bfloat16 rounds at
# 4e-3, so logits of size 16 are off by some hundredths; another batch shape adds in another order, and no test of one
# token can be sharp. Means over tokens can: a mistake in masks or positions moves them by tenths or more.
FLOAT32 = Bounds(same=1e-5, padded=1e-4, score=1e-3, drawn=1e-4, clipped=0.0)
BFLOAT16 = Bounds(same=1e-3, padded=0.05, score=0.15, drawn=0.01, clipped=0.02)


def bounds_of(*models: ModelConfig) -> Bounds:
    """Return the bounds for models that work together: the coarsest type counts."""
    return BFLOAT16 if any(model.dtype is DType.bfloat16 for model in models) else FLOAT32


def spread(items: Sequence[Item], lengths: Sequence[int], size: int) -> list[Item]:
    """Pick `size` items (all, if there are fewer) from the shortest to the longest, evenly."""
    order = sorted(range(len(items)), key=lambda index: lengths[index])
    size = min(size, len(items))
    last = max(size - 1, 1)
    return [items[order[place * (len(items) - 1) // last]] for place in range(size)]


def report_checks(check: Callable[[], list[Check]], config: CheckConfig, report: Reporter) -> None:
    """Make the checks and show them; raise InputError where one failed and check.strict holds."""
    start = time.perf_counter()
    checks = check()
    report.checks(checks, time.perf_counter() - start)
    failed = [check.name for check in checks if check.status == "FAIL"]
    if failed and config.strict:
        raise InputError(
            f"{len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}. Mend what the table says, "
            "or set check.strict=false to go on"
        )


def largest(*differences: Tensor) -> float:
    """The largest absolute value; NaN where there is one, which Python's max would pass over."""
    return float(torch.cat([difference.flatten() for difference in differences]).abs().max())


def relative(scores: Tensor, others: Tensor) -> float:
    """Largest difference of two readings, in units of the scores' own size where that is above 1."""
    return largest(scores - others) / max(1.0, largest(scores))


def worst_of_all_ranks(checks: list[Check]) -> list[Check]:
    """Return the checks with the largest figure of any rank; all ranks together."""
    figures = distributed.gather_all([check.figure for check in checks])
    return [
        replace(check, figure=max(column, key=lambda figure: math.inf if math.isnan(figure) else figure))
        for check, column in zip(checks, zip(*figures, strict=True), strict=True)
    ]
