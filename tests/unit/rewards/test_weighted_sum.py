"""The weighted sum of sources, by hand."""

import math

import torch
from torch.testing import assert_close

from rlhf_cli.algo.normalise import Moments
from rlhf_cli.config.reward_options import Normalise, RewardSourceConfig
from rlhf_cli.rewards.weighted_sum import WeightedSum


def summed(*options):
    return WeightedSum([RewardSourceConfig(name=f"s{place}", **one) for place, one in enumerate(options)])


def test_the_score_of_a_single_source_is_unchanged():
    scores = torch.tensor([[0.1], [-7.3]])
    assert torch.equal(summed({})(scores), scores[:, 0])


def test_scaled_then_clipped_then_weighted():
    """2 x 3 = 6, clipped to 4, times -0.5; and 1 x 10."""
    weigh = summed({"scale": 2.0, "clip": 4.0, "weight": -0.5}, {})
    scores = torch.tensor([[3.0, 10.0], [-1.0, 0.0]])
    assert weigh.parts(scores).tolist() == [[-2.0, 10.0], [1.0, 0.0]]
    assert weigh(scores).tolist() == [8.0, 1.0]


def test_running_moments_take_in_every_step_and_fixed_ones_the_first():
    weigh = summed({"normalise": Normalise.running}, {"normalise": Normalise.fixed}, {})
    first = weigh.updated_moments({}, torch.tensor([[1.0, 1.0, 9.0], [3.0, 3.0, 9.0]]))
    assert first == {"s0": Moments(2, 2.0, 2.0), "s1": Moments(2, 2.0, 2.0)}
    second = weigh.updated_moments(first, torch.tensor([[5.0, 5.0, 9.0], [7.0, 7.0, 9.0]]))
    assert second == {"s0": Moments(4, 4.0, 20.0), "s1": Moments(2, 2.0, 2.0)}


def test_normalised_before_it_is_clipped():
    """(8 - 2) / sqrt(16 / 4) = 3, scaled to 6, clipped to 5."""
    weigh = summed({"normalise": Normalise.running, "scale": 2.0, "clip": 5.0})
    moments = {"s0": Moments(4, 2.0, 16.0)}
    assert_close(weigh(torch.tensor([[8.0], [3.0]]), moments), torch.tensor([5.0, 1.0]))


def test_without_moments_a_normalised_source_stays_on_its_own_scale():
    weigh = summed({"normalise": Normalise.fixed, "scale": 2.0, "clip": 1.0, "weight": 0.5}, {"clip": 1.0})
    assert weigh(torch.tensor([[8.0, 4.0]])).tolist() == [9.0]


def test_nothing_that_is_not_finite_is_hidden():
    assert math.isnan(summed({"clip": 1.0}, {})(torch.tensor([[math.nan, 1.0]]))[0])


def test_fixed_moments_wait_for_scores_that_differ():
    weigh = summed({"normalise": Normalise.fixed})
    alike = weigh.updated_moments({}, torch.tensor([[2.0], [2.0]]))
    assert alike == {"s0": Moments(2, 2.0, 0.0)}
    assert weigh.updated_moments(alike, torch.tensor([[0.0], [4.0]])) == {"s0": Moments(4, 2.0, 8.0)}
