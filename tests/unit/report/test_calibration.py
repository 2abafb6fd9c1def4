"""Accuracy and calibration of a reward model, computed by hand."""

import math

import pytest

from rlhf_cli.report.calibration import (
    Calibration,
    accuracy,
    by_category,
    by_length_gap,
    longer_wins,
    loss_and_margin,
    most_wrong,
    probability,
)
from tests.unit.report.synthetic_runs import pair


def odds(p):
    return math.log(p / (1 - p))


def test_accuracy_counts_ties_half_and_the_baseline_counts_characters():
    pairs = [pair(2.0, 1.0, gap=3), pair(1.0, 1.0, gap=-2), pair(0.0, 1.0, gap=0), pair(3.0, 1.0, gap=1)]
    assert accuracy(pairs).mean == 2.5 / 4
    assert longer_wins(pairs).mean == 2.5 / 4
    assert longer_wins(pairs[1:2]).mean == 0.0


def test_the_pairs_of_a_ranking_together_count_as_one():
    """One wrong pair and a ranking with three right pairs: the accuracy is 1/2 of two, not 3/4 of four."""
    pairs = [pair(0.0, 1.0, gap=-1), *[pair(1.0, 0.0, gap=1, weight=1 / 3)] * 3]
    assert accuracy(pairs).mean == pytest.approx(0.5)
    assert accuracy(pairs).low == pytest.approx(accuracy([pairs[0], pair(1.0, 0.0)]).low)
    assert longer_wins(pairs).mean == pytest.approx(0.5)
    found = Calibration(pairs)  # all in one bin, at sigmoid(1) = 0.731
    assert (found.ece, found.bins[0].num_pairs) == (pytest.approx(0.2311, abs=1e-4), 4)
    assert found.brier == pytest.approx((0.7311**2 + 0.2689**2) / 2, abs=1e-4)


def test_calibration_by_hand():
    """Ten pairs at 0.9, nine of them right: no error. Ten at 0.7, five right: off by 0.2. Brier by hand.

    ECE = (10 x 0 + 10 x 0.2) / 20 = 0.1; Brier = (9 x 0.01 + 0.81 + 5 x 0.09 + 5 x 0.49) / 20 = 0.19.
    """
    pairs = [pair(odds(0.9), 0.0)] * 9 + [pair(-odds(0.9), 0.0)]
    pairs += [pair(odds(0.7), 0.0)] * 5 + [pair(-odds(0.7), 0.0)] * 5
    found = Calibration(pairs)
    assert [(one.num_pairs, one.accuracy.mean) for one in found.bins] == [(10, 0.5), (10, 0.9)]
    assert [one.confidence for one in found.bins] == pytest.approx([0.7, 0.9])
    assert found.ece == pytest.approx(0.1)
    assert found.brier == pytest.approx(0.19)


def test_calibration_uses_the_log_odds_and_not_the_normalized_scores():
    pairs = [pair(100.0, 0.0, log_odds=odds(0.6))] * 2
    assert Calibration(pairs).bins[0].confidence == pytest.approx(0.6)
    assert probability(pairs[0]) == pytest.approx(0.6)
    assert probability(pair(-2000.0, 0.0)) == 0.0  # and no overflow
    assert Calibration([pair(2000.0, 0.0)]).brier == 0.0


def test_accuracy_by_length_gap_has_every_pair_once():
    """The model is wrong if the chosen response is the shorter one."""
    pairs = [pair(float(gap > 0), 0.5, gap=gap) for gap in range(-10, 11)]
    groups = by_length_gap(pairs)
    assert sum(group.num_pairs for group in groups) == len(pairs)
    assert groups[0].name == "-10 to -7"
    assert groups[-1].name.endswith("to +10")
    assert (groups[0].accuracy.mean, groups[-1].accuracy.mean) == (0.0, 1.0)
    assert by_length_gap([pair(1.0, 0.0, gap=4)] * 5) == []  # nothing to compare


def test_accuracy_by_category_starts_with_the_largest_and_skips_rows_without_one():
    pairs = [pair(1.0, 0.0, category="b")] * 3 + [pair(0.0, 1.0, category="a")] + [pair(0.0, 1.0)] * 9
    assert [(one.name, one.num_pairs, one.accuracy.mean) for one in by_category(pairs)] == [
        ("b", 3, 1.0),
        ("a", 1, 0.0),
    ]
    assert by_category([pair(1.0, 0.0)]) == []
    many = [pair(1.0, 0.0, category=str(n)) for n in range(20)]
    assert [(one.name, one.num_pairs) for one in by_category(many)][-1] == ("all others", 8)


def test_loss_and_margin_of_the_trained_head():
    """ln 2 at log odds of 0, and log(1 + e^-1) = 0.3133 at 1."""
    loss, margin = loss_and_margin([pair(0.0, 0.0), pair(1.0, 0.0)])
    assert (loss, margin) == (pytest.approx((math.log(2) + 0.31326) / 2, abs=1e-5), 0.5)


def test_the_most_wrong_pairs_are_those_with_the_worst_odds():
    pairs = [pair(score, 0.0) for score in (1.0, -3.0, -0.5, 0.0, -1.0)]
    assert [one["score_chosen"] for one in most_wrong(pairs, 2)] == [-3.0, -1.0]
    assert most_wrong([pair(1.0, 0.0)], 9) == []
