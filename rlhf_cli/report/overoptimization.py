"""Detect over-optimisation: the score rises only by leaving the reference.

When a score is over-optimised, it keeps rising with the KL while the gold score has passed its
maximum (arXiv:2210.10760). With a gold reward model this maximum is measured. Without one the
objective of the run is used: score - beta * KL. Once it has passed its maximum while score and KL
rise, each further nat costs more than the score gains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.report.intervals import bootstrap_mean

MIN_STEPS = 10  # of a run that is judged
_WINDOW_SHARE = 0.1  # of the steps: the window of the running mean
_ERROR_RATE = 0.05
_STANDARD_ERRORS = 3.0  # that a fall must exceed: the highest of many means is high by chance too


def find_overoptimization(scores: Sequence[float], kls: Sequence[float], kl_coefs: Sequence[float]) -> int | None:
    """Return the step index after which score - beta * KL falls while both rise, or None.

    scores, kls (nats per response) and kl_coefs have one value per step. beta is the last
    coefficient, also for earlier steps: it is what the run pays at its end. All series are smoothed
    by a running mean first. A fall counts if it exceeds three standard errors of the difference of
    both means.
    """
    if len(scores) < MIN_STEPS:
        return None
    width = max(3, round(_WINDOW_SHARE * len(scores)))
    objective = np.asarray(scores) - kl_coefs[-1] * np.asarray(kls)
    score, kl, smooth = (_running_mean(np.asarray(one, dtype=float), width) for one in (scores, kls, objective))
    top, half = int(smooth.argmax()), width // 2
    num_top, num_last = min(len(smooth), top + half + 1) - max(0, top - half), half + 1  # steps of both means
    error = np.std(objective - smooth) * np.sqrt(1 / num_top + 1 / num_last)
    falls = smooth[top] - smooth[-1] > _STANDARD_ERRORS * error
    if top == len(smooth) - 1 or not falls or score[-1] <= score[top] or kl[-1] <= kl[top]:
        return None
    return top


def find_gold_peak(scores: Sequence[float], gold: Sequence[Sequence[float]]) -> int | None:
    """Return the index of the highest mean gold score, if gold then fell and the score rose.

    scores: mean score of each evaluation; gold: gold scores of each evaluation, of the same prompts
    every time. Gold has fallen if the interval of the differences of the last evaluation, paired by
    prompt, is below 0. It is a 95 % interval for all evaluations together (Bonferroni), because the
    highest of many is high by chance too.
    """
    top = int(np.argmax([float(np.mean(row)) for row in gold]))
    if scores[-1] <= scores[top]:
        return None
    differences = [last - best for best, last in zip(gold[top], gold[-1], strict=True)]
    change = bootstrap_mean(differences, level=1 - _ERROR_RATE / len(gold))
    return top if change.high < 0 else None


def _running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Return means over a centred window, which is shorter at both ends."""
    window = np.ones(2 * (width // 2) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
