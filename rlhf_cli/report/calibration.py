"""How good a reward model's held-out pairs say it is: accuracy, calibration, and where it fails.

A pair counts with its weight: the pairs of a ranking count 1 together, as in training and in eval/accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.report.intervals import Interval, wilson
from rlhf_cli.report.run_records import Record

_BINS = 10
_MOST_GROUPS = 12  # categories that are shown one by one


@dataclass(frozen=True)
class Bin:
    """Pairs whose confidence lies together."""

    confidence: float  # mean over the pairs
    accuracy: Interval
    num_pairs: int


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities of a reward model can be believed.

    A pair's probability that the chosen answer is the better one is sigmoid(log odds); its confidence is that of the
    answer that the model prefers, in [0.5, 1].
    """

    bins: list[Bin]
    ece: float  # mean over pairs of |accuracy - confidence| of their bin (arXiv:1706.04599)
    brier: float  # mean of (1 - probability)^2 (Brier 1950)


@dataclass(frozen=True)
class Group:
    """Pairs that have something in common."""

    name: str
    accuracy: Interval
    num_pairs: int


def accuracy(pairs: Sequence[Record]) -> Interval:
    """Return the share of pairs with the higher score for the chosen answer, ties half."""
    return _share(_correct(pairs), _weights(pairs))


def longer_wins(pairs: Sequence[Record]) -> Interval:
    """Return the accuracy of "the longer text wins" on the same pairs, as eval/longer_wins_accuracy counts it."""
    gaps = np.array([len(pair["chosen"]) - len(pair["rejected"]) for pair in pairs])
    return _share((gaps > 0) + 0.5 * (gaps == 0), _weights(pairs))


def calibration(pairs: Sequence[Record]) -> Calibration:
    """Compare confidence with accuracy, in ten bins of equal width over [0.5, 1]."""
    log_odds = np.array([pair["log_odds"] for pair in pairs])
    probability = np.exp(-np.logaddexp(0, -log_odds))
    confidence, correct, weights = np.maximum(probability, 1 - probability), _correct(pairs), _weights(pairs)
    places = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    bins, ece = [], 0.0
    for inside in (places == place for place in range(_BINS)):
        if inside.any():
            mean = float(np.average(confidence[inside], weights=weights[inside]))
            bins.append(Bin(mean, _share(correct[inside], weights[inside]), int(inside.sum())))
            ece += float(weights[inside].sum()) * abs(bins[-1].accuracy.mean - mean)
    brier = float(np.average((1 - probability) ** 2, weights=weights))
    return Calibration(bins, ece / float(weights.sum()), brier)


def loss_and_margin(pairs: Sequence[Record]) -> tuple[float, float]:
    """Return the mean of -log sigmoid(log odds), nats, and of the log odds: both by the head that was trained."""
    log_odds, weights = np.array([pair["log_odds"] for pair in pairs]), _weights(pairs)
    loss = np.average(np.logaddexp(0, -log_odds), weights=weights)
    return float(loss), float(np.average(log_odds, weights=weights))


def by_length_gap(pairs: Sequence[Record]) -> list[Group]:
    """Return the accuracy by how much longer the chosen answer is, in tokens; groups of like size."""
    gaps = _gaps(pairs)
    edges = np.unique(np.quantile(gaps, np.linspace(0, 1, 6)).round()).astype(int)
    if len(edges) < 2:
        return []
    groups = []
    for low, high in pairwise(edges):
        last = high == edges[-1]
        inside = (gaps >= low) & ((gaps <= high) if last else (gaps < high))
        name = f"{low:+d} to {high if last else high - 1:+d}"
        groups += _group(name, [pair for pair, one in zip(pairs, inside, strict=True) if one])
    return groups


def by_category(pairs: Sequence[Record]) -> list[Group]:
    """Return the accuracy of the largest categories, and of all others together; [] where rows have none."""
    by_name: dict[str, list[Record]] = {}
    for pair in pairs:
        if pair.get("category") is not None:
            by_name.setdefault(str(pair["category"]), []).append(pair)
    largest = sorted(by_name, key=lambda name: (-len(by_name[name]), name))
    groups = [Group(name, accuracy(by_name[name]), len(by_name[name])) for name in largest[:_MOST_GROUPS]]
    rest = [pair for name in largest[_MOST_GROUPS:] for pair in by_name[name]]
    return [*groups, *_group("all others", rest)]


def most_wrong(pairs: Sequence[Record], count: int) -> list[Record]:
    """Return the pairs whose rejected answer is preferred most, the worst first."""
    return sorted((pair for pair in pairs if pair["log_odds"] < 0), key=lambda pair: float(pair["log_odds"]))[:count]


def probability(pair: Record) -> float:
    """Return what the model gives to the answer that people chose."""
    return float(np.exp(-np.logaddexp(0, -pair["log_odds"])))


def _group(name: str, pairs: Sequence[Record]) -> list[Group]:
    return [Group(name, accuracy(pairs), len(pairs))] if pairs else []


def _share(correct: NDArray[np.float64], weights: NDArray[np.float64]) -> Interval:
    return wilson(float((weights * correct).sum()), float(weights.sum()))


def _weights(pairs: Sequence[Record]) -> NDArray[np.float64]:
    return np.array([pair.get("weight", 1.0) for pair in pairs], dtype=np.float64)


def _correct(pairs: Sequence[Record]) -> NDArray[np.float64]:
    margins = np.array([pair["score_chosen"] - pair["score_rejected"] for pair in pairs])
    correct: NDArray[np.float64] = (margins > 0) + 0.5 * (margins == 0)
    return correct


def _gaps(pairs: Sequence[Record]) -> NDArray[np.int64]:
    return np.array([pair["tokens_chosen"] - pair["tokens_rejected"] for pair in pairs])
