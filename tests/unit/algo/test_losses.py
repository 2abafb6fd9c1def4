import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.algo.losses import (
    approx_kl,
    centering_loss,
    policy_clipped,
    policy_loss,
    preference_correct,
    preference_loss,
    value_clipped,
    value_loss,
)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # inside the range: -ratio * A, and so is its derivative to log ratio
        (1.5, 2.0, -2.4, 0.0),  # above, A > 0: clipped at 1.2
        (1.5, -2.0, 3.0, 3.0),  # above, A < 0: not clipped, the loss is the larger one
        (0.5, 2.0, -1.0, -1.0),  # below, A > 0: not clipped
        (0.5, -2.0, 1.6, 0.0),  # below, A < 0: clipped at 0.8
        (1.1, -2.0, 2.2, 2.2),
    ],
)
def test_policy_loss_and_its_gradient(ratio, advantage, loss, gradient):
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    surrogate = (logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), 0.2, 0.2)
    check_surrogate(surrogate, loss, gradient)


def check_surrogate(surrogate, loss, gradient):
    got = policy_loss(*surrogate)
    got.sum().backward()
    assert_close(got.detach(), torch.tensor([[loss]]), atol=1e-6, rtol=0)
    assert_close(surrogate[0].grad, torch.tensor([[gradient]]), atol=1e-6, rtol=0)
    assert policy_clipped(*surrogate).item() == (1.0 if gradient == 0 else 0.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.25, 2.0, -2.5, -2.5),  # between the two bounds above 1: free under the upper one
        (1.4, 2.0, -2.6, 0.0),  # clipped at 1.3
        (0.85, -2.0, 1.8, 0.0),  # clipped at 0.9
        (0.95, -2.0, 1.9, 1.9),
    ],
)
def test_lower_and_upper_bound_are_apart(ratio, advantage, loss, gradient):
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    check_surrogate((logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), 0.1, 0.3), loss, gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (4.0, -2.0, 6.0, 0.0),  # capped at 3 times -A
        (2.5, -2.0, 5.0, 5.0),  # below the cap
        (0.5, -2.0, 1.6, 0.0),  # the lower clip still holds
        (4.0, 2.0, -2.4, 0.0),  # A > 0: the cap has no say, the upper clip has
        (1.1, 2.0, -2.2, -2.2),
    ],
)
def test_dual_clip_caps_the_loss_where_the_advantage_is_negative(ratio, advantage, loss, gradient):
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    check_surrogate((logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), 0.2, 0.2, 3.0), loss, gradient)


def test_the_bounds_of_the_surrogate_are_not_clipped_themselves():
    """In float64 the ratio 1.25 and the bounds 1 +- 0.25 are exact."""
    for ratio, advantage in ((1.25, 1.0), (0.75, -1.0)):
        logprobs = torch.tensor([math.log(ratio)], dtype=torch.float64)
        exact = torch.exp(logprobs)
        assert exact.item() == ratio
        surrogate = (logprobs, torch.zeros(1), torch.tensor([advantage]), 0.25, 0.25, 1.25)
        assert policy_clipped(*surrogate).item() == 0
    on_the_cap = (torch.tensor([math.log(1.25)], dtype=torch.float64), torch.zeros(1), torch.tensor([-1.0]))
    assert policy_clipped(*on_the_cap, 0.25, 0.25, 1.25).item() == 0


def test_a_zero_advantage_is_never_clipped():
    surrogate = (torch.tensor([2.0, -2.0]), torch.zeros(2), torch.zeros(2), 0.2, 0.2, 3.0)
    assert policy_clipped(*surrogate).tolist() == [0.0, 0.0]
    assert policy_loss(*surrogate).abs().tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("value", "returned", "loss", "gradient"),
    [
        (0.1, 1.0, 0.5 * 0.9**2, -0.9),  # inside the clip: plain squared error
        (0.5, 1.0, 0.5 * 0.8**2, 0.0),  # V moved towards R past 0.2: the error of 0.2 is larger and constant
        (-0.5, 1.0, 0.5 * 1.5**2, -1.5),  # V moved away: its own error is larger
        (0.5, -1.0, 0.5 * 1.5**2, 1.5),
        (-0.5, -1.0, 0.5 * 0.8**2, 0.0),
    ],
)
def test_value_loss_and_its_gradient(value, returned, loss, gradient):
    values = torch.tensor([[value]], requires_grad=True)
    old, target = torch.zeros(1, 1), torch.tensor([[returned]])
    got = value_loss(values, old, target, 0.2)
    got.sum().backward()
    assert_close(got.detach(), torch.tensor([[loss]]), atol=1e-6, rtol=0)
    assert_close(values.grad, torch.tensor([[gradient]]), atol=1e-6, rtol=0)
    assert value_clipped(values, old, target, 0.2).item() == (1.0 if gradient == 0 else 0.0)


def test_without_a_cliprange_the_value_loss_is_the_squared_error():
    values, old, returns = torch.tensor([0.5]), torch.tensor([0.0]), torch.tensor([1.0])
    assert value_loss(values, old, returns, None).tolist() == [0.125]
    assert value_clipped(values, old, returns, None).tolist() == [0.0]


def test_approx_kl_by_hand():
    """ratio 2: 2 - 1 - log 2."""
    got = approx_kl(torch.tensor([math.log(2.0), 0.0]), torch.zeros(2))
    assert_close(got, torch.tensor([1 - math.log(2), 0.0]), atol=1e-6, rtol=0)


def bradley_terry(better, worse, margin=0.0, confidence=1.0):
    return preference_loss(better, worse, torch.full_like(better, margin), torch.full_like(better, confidence))


def test_preference_loss_by_hand():
    """Equal scores: ln 2. A difference of 2: -log(1 / (1 + e^-2)); a constant added to both changes nothing."""
    better, worse = torch.tensor([0.0, 3.0, -1.0]), torch.tensor([0.0, 1.0, 1.0])
    expected = torch.tensor([math.log(2), math.log1p(math.exp(-2)), 2 + math.log1p(math.exp(-2))])
    assert_close(bradley_terry(better, worse), expected, atol=1e-6, rtol=0)
    assert_close(bradley_terry(better + 5, worse + 5), expected, atol=1e-6, rtol=0)


def test_a_margin_is_what_the_difference_must_exceed():
    """A difference of 3 less a margin of 1 counts as 2."""
    got = bradley_terry(torch.tensor([3.0]), torch.tensor([0.0]), margin=1.0)
    assert_close(got, torch.tensor([math.log1p(math.exp(-2))]), atol=1e-6, rtol=0)


def test_confidence_mixes_both_orders():
    """0.9 of -log sigmoid(2) and 0.1 of -log sigmoid(-2)."""
    got = bradley_terry(torch.tensor([2.0]), torch.tensor([0.0]), confidence=0.9)
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert_close(got, torch.tensor([0.9 * right + 0.1 * wrong]), atol=1e-6, rtol=0)


def test_centering_is_the_squared_sum():
    got = centering_loss(torch.tensor([1.0, 2.0]), torch.tensor([2.0, -2.0]))
    assert got.tolist() == [9.0, 0.0]
    assert centering_loss(torch.tensor([2.0]), torch.tensor([3.0])).item() == 25.0  # adding 1 to both is not free


def test_ties_count_half():
    assert preference_correct(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 2.0])).tolist() == [1.0, 0.0, 0.5]
