"""Intervals, compared with textbook values and with values computed by hand."""

import pytest

from rlhf_cli.report.intervals import bootstrap_mean, wilson


def test_an_interval_of_a_share():
    """8 of 10: the textbook score interval is 0.490 to 0.943. Shares of 0 and 1 have an interval too."""
    found = wilson(8, 10)
    assert (found.mean, found.low, found.high) == pytest.approx((0.8, 0.490, 0.943), abs=5e-4)
    assert (wilson(0, 10).low, wilson(10, 10).high) == pytest.approx((0.0, 1.0), abs=1e-12)
    assert 0.25 < wilson(0, 10).high < 0.35
    assert wilson(8, 10, level=0.5).high < found.high


def test_bootstrap_interval():
    """For n values with standard deviation 1 around 3, the 95 % interval is close to 3 +- 1.96 / sqrt(n)."""
    values = [2.0, 4.0] * 200
    interval = bootstrap_mean(values)
    assert interval.mean == 3.0
    assert interval.low == pytest.approx(3 - 1.96 / 20, abs=0.01)
    assert interval.high == pytest.approx(3 + 1.96 / 20, abs=0.01)
