import math

import torch
from torch.testing import assert_close

from rlhf_cli.algo.normalise import Moments, normalised_head


def hidden_states(num_rows, shift):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(num_rows, 8, generator=generator)
    return rows + shift * torch.nn.functional.one_hot(torch.tensor(3), 8)


def test_scores_have_mean_0_and_deviation_1():
    hidden, weight = hidden_states(200, 5.0), torch.linspace(-1, 1, 8)
    scores = hidden.double() @ normalised_head(weight, hidden).double()
    assert_close(scores.mean(), torch.tensor(0.0, dtype=torch.float64), atol=1e-5, rtol=0)
    assert_close(scores.std(correction=0), torch.tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0)


def test_with_a_constant_direction_it_is_a_shift_and_a_scale_and_no_order_changes():
    """One coordinate is always 5, as under a LayerNorm with bias: the new scores are an affine map of the old."""
    hidden, weight = hidden_states(200, 5.0), torch.linspace(-1, 1, 8)
    hidden[:, 3] = 5.0
    old, new = hidden @ weight, hidden @ normalised_head(weight, hidden)
    assert_close(new, (old - old.mean()) / old.std(correction=0), atol=1e-4, rtol=0)
    assert torch.equal(old.argsort(), new.argsort())


def test_a_common_direction_keeps_nearly_every_order():
    """Rows far from the origin, as those of language models are: pairs change sides only when nearly tied."""
    hidden, weight = hidden_states(400, 50.0), torch.linspace(-1, 1, 8)
    old, new = hidden @ weight, hidden @ normalised_head(weight, hidden)
    same = (old[:200] > old[200:]) == (new[:200] > new[200:])
    assert same.float().mean() > 0.95


def corners(mean, reach):
    """Every row mean +- reach: their mean is `mean`, their covariance diagonal with the squares of `reach`."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * len(mean))
    return torch.tensor(mean, dtype=torch.float64) + signs * torch.tensor(reach, dtype=torch.float64)


def test_the_head_by_hand():
    """Mean (1, 1, 1), covariance diag(0, 1, 1), whose mean diagonal is 2/3: with a thousandth of it 1/1500 is added.

    C^-1 mean = 1500 * (1, 1/1501, 1/1501), so that u = (1501, 1, 1) / 1503. The weight's score at the mean is 1:
    it becomes (0, 1, 0) - u = (-1501, 1502, -1) / 1503, of variance (1502^2 + 1^2) / 1503^2.
    """
    head = normalised_head(torch.tensor([0.0, 1.0, 0.0]), corners([1.0, 1.0, 1.0], [0.0, 1.0, 1.0]))
    expected = torch.tensor([-1501.0, 1502.0, -1.0]) / math.sqrt(1502**2 + 1)
    assert_close(head, expected, atol=1e-6, rtol=0)


def test_around_the_origin_only_the_scale_changes():
    """Mean 0, covariance the identity: the weight (3, 4) has deviation 5."""
    head = normalised_head(torch.tensor([3.0, 4.0]), corners([0.0, 0.0], [1.0, 1.0]))
    assert_close(head, torch.tensor([0.6, 0.8]), atol=1e-6, rtol=0)


def test_a_mean_next_to_nothing_is_subtracted_in_part():
    """Covariance the identity, plus a thousandth; mean^T C^-1 mean is 0.5e-12, which counts as 1e-12, so that half
    of the mean's direction goes: (1, 1) becomes (0.5, 1), of deviation sqrt(1.25).
    """
    head = normalised_head(torch.tensor([1.0, 1.0]), corners([math.sqrt(0.5e-12 * 1.001), 0.0], [1.0, 1.0]))
    assert_close(head, torch.tensor([0.5, 1.0]) / math.sqrt(1.25), atol=1e-6, rtol=0)


def test_equal_rows_give_a_head_without_nan():
    """No covariance: u = (0.5, 0.5), (1, 0) - u = (0.5, -0.5); a variance of 0 counts as 1e-24."""
    head = normalised_head(torch.tensor([1.0, 0.0]), torch.ones(3, 2))
    assert_close(head, torch.tensor([0.5e12, -0.5e12]), atol=0, rtol=1e-6)


def test_a_variance_next_to_nothing_counts_as_1e_12_in_the_ridge():
    """Covariance diag(0, 3e-13, 3e-13), mean diagonal 2e-13; a thousandth of 1e-12 is added: 1e-15 * diag(1, 301, 301).

    u = (301, 1, 1) / 303; (0, 1, 0) - u = (-301, 302, -1) / 303, of variance 3e-13 * (302^2 + 1^2) / 303^2.
    """
    reach = math.sqrt(3e-13)
    head = normalised_head(torch.tensor([0.0, 1.0, 0.0]), corners([1.0, 1.0, 1.0], [0.0, reach, reach]))
    expected = torch.tensor([-301.0, 302.0, -1.0]) / math.sqrt(3e-13 * (302**2 + 1))
    assert_close(head, expected, atol=1.0, rtol=1e-6)


def test_moments_of_parts_are_those_of_the_whole():
    """1, 2, 3, 4 and 10: mean 4, squared distances 9 + 4 + 1 + 0 + 36 = 50."""
    moments = Moments().updated(torch.tensor([1.0, 2.0])).updated(torch.tensor([3.0, 4.0, 10.0]))
    assert moments.count == 5
    assert math.isclose(moments.mean, 4.0, rel_tol=1e-12)
    assert math.isclose(moments.squares, 50.0, rel_tol=1e-12)


def test_normalised_scores_are_distances_in_deviations():
    """Deviation sqrt(50 / 5) = sqrt(10)."""
    got = Moments(5, 4.0, 50.0).normalise(torch.tensor([4.0, 10.0]))
    assert_close(got, torch.tensor([0.0, 6 / math.sqrt(10)]))
    assert got.dtype is torch.float32
    assert_close(Moments(4, 1.0, 1.0).normalise(torch.tensor([2.0])), torch.tensor([2.0]))  # deviation 1/2


def test_scores_that_are_all_alike_only_lose_their_mean():
    moments = Moments().updated(torch.tensor([2.5, 2.5]))
    assert moments == Moments(2, 2.5, 0.0)
    assert moments.normalise(torch.tensor([2.5, 3.5])).tolist() == [0.0, 1.0]
    assert Moments().normalise(torch.tensor([2.0])).tolist() == [2.0]


def test_moments_far_from_zero_lose_no_digits():
    """A million and one: squares of the scores themselves would leave nothing of a spread of 1 in float32."""
    moments = Moments()
    for _ in range(100):
        moments = moments.updated(torch.tensor([1e6, 1e6 + 1]))
    assert math.isclose(moments.squares / moments.count, 0.25, rel_tol=1e-6)
