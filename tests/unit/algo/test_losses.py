import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.algo.losses import (
    approx_kl,
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
    got = policy_loss(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), 0.2)
    got.sum().backward()
    assert_close(got.detach(), torch.tensor([[loss]]), atol=1e-6, rtol=0)
    assert_close(logprobs.grad, torch.tensor([[gradient]]), atol=1e-6, rtol=0)
    clipped = policy_clipped(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), 0.2)
    assert clipped.item() == (1.0 if gradient == 0 else 0.0)


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


def test_approx_kl_by_hand():
    """ratio 2: 2 - 1 - log 2."""
    got = approx_kl(torch.tensor([math.log(2.0), 0.0]), torch.zeros(2))
    assert_close(got, torch.tensor([1 - math.log(2), 0.0]), atol=1e-6, rtol=0)


def test_preference_loss_by_hand():
    """Equal scores: ln 2. A margin of 2: -log(1 / (1 + e^-2)); a constant added to both changes nothing."""
    chosen, rejected = torch.tensor([0.0, 3.0, -1.0]), torch.tensor([0.0, 1.0, 1.0])
    expected = torch.tensor([math.log(2), math.log1p(math.exp(-2)), 2 + math.log1p(math.exp(-2))])
    assert_close(preference_loss(chosen, rejected), expected, atol=1e-6, rtol=0)
    assert_close(preference_loss(chosen + 5, rejected + 5), expected, atol=1e-6, rtol=0)


def test_ties_count_half():
    assert preference_correct(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 2.0])).tolist() == [1.0, 0.0, 0.5]
