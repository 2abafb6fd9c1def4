"""Whether a score still rises by better answers, or only by leaving the reference (arXiv:2210.10760).

There a proxy score rises with the KL while the gold score has a maximum and falls. With a gold reward model that
maximum is measured. Without one the objective itself is asked: score - beta x KL, with the KL's coefficient of the run.
Where it has passed its maximum while score and KL go on rising, every further nat costs more than the score gains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.report.intervals import bootstrap_mean

_SMOOTHED = 0.1  # share of the steps that a running mean covers
_ENOUGH_STEPS = 10
_DOUBT = 0.05
_SURE = 3.0  # standard errors that a fall must be worth: the highest of many means is high by chance too


def over_optimised(scores: Sequence[float], kls: Sequence[float], kl_coefs: Sequence[float]) -> int | None:
    """Return the index of the step after which score - beta x KL falls while score and KL rise; None: there is none.

    scores, kls (nats a response), kl_coefs: one a step. The last coefficient is beta, also for earlier steps: it is
    what the run pays at its end. All series are smoothed by a running mean first; a fall counts where it is larger than
    three standard errors of the difference of both means.
    """
    if len(scores) < _ENOUGH_STEPS:
        return None
    width = max(3, round(_SMOOTHED * len(scores)))
    beta = kl_coefs[-1]
    objective = np.asarray(scores) - beta * np.asarray(kls)
    score, kl, smooth = (_running_mean(np.asarray(one, dtype=float), width) for one in (scores, kls, objective))
    top = int(smooth.argmax())
    half = width // 2
    num_top, num_last = min(len(smooth), top + half + 1) - max(0, top - half), half + 1  # steps of both means
    spread = np.std(objective - smooth) * np.sqrt(1 / num_top + 1 / num_last)
    falls = smooth[top] - smooth[-1] > _SURE * spread
    if top == len(smooth) - 1 or not falls or score[-1] <= score[top] or kl[-1] <= kl[top]:
        return None
    return top


def gold_passed_its_top(scores: Sequence[float], gold: Sequence[Sequence[float]]) -> int | None:
    """Return the index of the evaluation with the highest mean gold score, where that is over and the score has risen.

    scores: means, one an evaluation; gold: of every prompt, the same ones each time. It is over where the last
    evaluation's gold scores are lower: the interval of their differences, prompt by prompt, leaves out 0. It is one of
    95 % for all evaluations together (Bonferroni), for the highest of many is high by chance too.
    """
    means = [float(np.mean(row)) for row in gold]
    top = int(np.argmax(means))
    if scores[-1] <= scores[top]:
        return None
    differences = [last - best for best, last in zip(gold[top], gold[-1], strict=True)]
    falls = bootstrap_mean(differences, level=1 - _DOUBT / len(gold))
    return top if falls.high < 0 else None


def _running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Mean over a centred window, which is cut off at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(0, places - width // 2), np.minimum(len(values), places + width // 2 + 1)
    means: NDArray[np.float64] = (sums[high] - sums[low]) / (high - low)
    return means
