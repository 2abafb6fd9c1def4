"""Judge a reward model by its held-out pairs: accuracy, calibration, and where it is wrong.

Each pair counts with its weight: the pairs of a ranking together count as 1, as in training and in
eval/accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.report.intervals import Interval, wilson
from rlhf_cli.report.run_records import Record

_BINS = 10
_MAX_CATEGORIES = 12  # that are shown one by one


@dataclass(frozen=True)
class Group:
    """Pairs that have something in common."""

    name: str
    accuracy: Interval
    num_pairs: int
    confidence: float = math.nan  # mean over the pairs; NaN if it was not measured


class Calibration:
    """How reliable the probabilities of a reward model are.

    The probability that the chosen response of a pair is better is sigmoid(log odds). The
    confidence is the probability of the response that the model prefers, in [0.5, 1].
    """

    def __init__(self, pairs: Sequence[Record]) -> None:
        """Compare confidence with accuracy, in ten bins of equal width over [0.5, 1]."""
        by_bin: dict[int, list[Record]] = {}
        for pair in pairs:
            by_bin.setdefault(min(int((_confidence(pair) - 0.5) * 2 * _BINS), _BINS - 1), []).append(pair)
        members = [by_bin[number] for number in sorted(by_bin)]
        self.bins = [_group("", inside) for inside in members]
        errors = [abs(group.accuracy.mean - group.confidence) for group in self.bins]
        # mean over pairs of |accuracy - confidence| of their bin (arXiv:1706.04599)
        self.ece = float(np.average(errors, weights=[_weights(inside).sum() for inside in members]))
        # mean of (1 - probability)^2 (Brier 1950)
        self.brier = float(np.average([(1 - probability(pair)) ** 2 for pair in pairs], weights=_weights(pairs)))


def accuracy(pairs: Sequence[Record]) -> Interval:
    """Return the share of pairs whose chosen response has the higher score. Ties count a half."""
    return _share_above_0([pair["score_chosen"] - pair["score_rejected"] for pair in pairs], _weights(pairs))


def longer_wins(pairs: Sequence[Record]) -> Interval:
    """Return the accuracy of "the longer text wins", defined as eval/longer_wins_accuracy."""
    return _share_above_0([len(pair["chosen"]) - len(pair["rejected"]) for pair in pairs], _weights(pairs))


def loss_and_margin(pairs: Sequence[Record]) -> tuple[float, float]:
    """Return the mean loss (nats) and the mean margin of the head as it was trained."""
    log_odds, weights = np.array([pair["log_odds"] for pair in pairs]), _weights(pairs)
    loss = np.average(np.logaddexp(0, -log_odds), weights=weights)
    return float(loss), float(np.average(log_odds, weights=weights))


def by_length_gap(pairs: Sequence[Record]) -> list[Group]:
    """Return the accuracy by tokens of chosen minus rejected, in up to five groups."""
    gaps = np.array([pair["tokens_chosen"] - pair["tokens_rejected"] for pair in pairs])
    edges = np.unique(np.quantile(gaps, np.linspace(0, 1, 6)).round()).astype(int)
    if len(edges) < 2:
        return []
    edges[-1] += 1  # the last group includes its upper edge
    groups = []
    for low, high in pairwise(edges):
        inside = [pair for pair, gap in zip(pairs, gaps, strict=True) if low <= gap < high]
        groups += [_group(f"{low:+d} to {high - 1:+d}", inside)] * bool(inside)
    return groups


def by_category(pairs: Sequence[Record]) -> list[Group]:
    """Return the accuracy of the largest categories, and of all others together."""
    by_name: dict[str, list[Record]] = {}
    for pair in pairs:
        if pair.get("category") is not None:
            by_name.setdefault(str(pair["category"]), []).append(pair)
    names = sorted(by_name, key=lambda name: (-len(by_name[name]), name))
    others = [pair for name in names[_MAX_CATEGORIES:] for pair in by_name[name]]
    groups = [_group(name, by_name[name]) for name in names[:_MAX_CATEGORIES]]
    return [*groups, _group("all others", others)] if others else groups


def most_wrong(pairs: Sequence[Record], count: int) -> list[Record]:
    """Return the pairs with the clearest preference for the rejected response, the worst first."""
    return sorted((pair for pair in pairs if pair["log_odds"] < 0), key=lambda pair: float(pair["log_odds"]))[:count]


def probability(pair: Record) -> float:
    """Return the model's probability that the chosen response is better."""
    return float(np.exp(-np.logaddexp(0, -pair["log_odds"])))


def _confidence(pair: Record) -> float:
    return max(probability(pair), 1 - probability(pair))


def _group(name: str, pairs: Sequence[Record]) -> Group:
    confidence = np.average([_confidence(pair) for pair in pairs], weights=_weights(pairs))
    return Group(name, accuracy(pairs), len(pairs), float(confidence))


def _share_above_0(values: list[float], weights: NDArray[np.float64]) -> Interval:
    """Return the weighted share of values above 0. Zeros count a half."""
    correct = (np.sign(values) + 1) / 2
    return wilson(float((weights * correct).sum()), float(weights.sum()))


def _weights(pairs: Sequence[Record]) -> NDArray[np.float64]:
    return np.array([pair.get("weight", 1.0) for pair in pairs], dtype=np.float64)
