import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.algo.advantages import (
    gae,
    length_scores,
    min_length_scores,
    missing_eos_scores,
    repetition,
    token_rewards,
)
from rlhf_cli.algo.masking import length_mask

LENGTHS = [5, 3, 1]


def double_sum(rewards, values, gamma, lam):
    """A_t = sum_k (gamma lam)^k delta_{t+k}, written as the paper writes it, on one row without padding."""
    length = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(length)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(length - t)) for t in range(length)]


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("lam", [1.0, 0.95, 0.0])
@pytest.mark.parametrize("filler", [0.0, 1e6, math.nan])
def test_gae_matches_the_double_sum_whatever_the_padding_holds(gamma, lam, filler):
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    mask = length_mask(torch.tensor(LENGTHS), 5)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        sums = double_sum(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
        expected[row, :length] = torch.tensor(sums, dtype=torch.float64)
    clean = torch.where(mask, values, torch.zeros_like(values))
    rewards, values = rewards.masked_fill(~mask, filler), values.masked_fill(~mask, filler)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    assert_close(advantages, expected, atol=1e-12, rtol=0)
    assert_close(returns, torch.where(mask, expected + clean, torch.zeros_like(expected)), atol=1e-12, rtol=0)


def test_gae_by_hand():
    """gamma 0.5, lam 0.5: delta = [1 + 0.5*4 - 2, 3 - 4] = [1, -1]; A = [1 + 0.25 * -1, -1]."""
    advantages, returns = gae(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 4.0]]), torch.ones(1, 2), 0.5, 0.5)
    assert advantages.tolist() == [[0.75, -1.0]]
    assert returns.tolist() == [[2.75, 3.0]]


def test_gae_of_a_single_token():
    """Nothing follows: A = 3 - 1."""
    advantages, returns = gae(torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.ones(1, 1), 0.9, 0.9)
    assert advantages.tolist() == [[2.0]]
    assert returns.tolist() == [[3.0]]


def test_the_score_stands_on_the_last_token_and_kl_on_every_one():
    mask = length_mask(torch.tensor([3, 1]), 3)
    kl = torch.tensor([[0.1, -0.2, 0.3], [0.5, math.nan, 99.0]])
    rewards = token_rewards(torch.tensor([2.0, -1.0]), kl, mask, kl_coef=0.5)
    assert_close(rewards, torch.tensor([[-0.05, 0.1, 2.0 - 0.15], [-1.25, 0.0, 0.0]]), atol=1e-6, rtol=0)


def test_gae_and_rewards_leave_their_arguments_alone():
    scores, kl, mask = torch.ones(1), torch.ones(1, 2), torch.ones(1, 2)
    values = torch.ones(1, 2)
    rewards = token_rewards(scores, kl, mask, 0.1)
    kept = rewards.clone()
    gae(rewards, values, mask, 1.0, 0.9)
    assert torch.equal(kl, torch.ones(1, 2))
    assert torch.equal(rewards, kept)
    assert torch.equal(values, torch.ones(1, 2))


def test_a_missing_eos_costs_the_penalty_once_or_the_score():
    scores, ended = torch.tensor([2.0, 2.0]), torch.tensor([True, False])
    assert missing_eos_scores(scores, ended, 0.5, replace=False).tolist() == [2.0, 1.5]
    assert missing_eos_scores(scores, ended, 0.5, replace=True).tolist() == [2.0, -0.5]


def test_a_response_below_the_minimum_length_pays():
    got = min_length_scores(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2, 3, 4]), 3, 0.25)
    assert got.tolist() == [0.75, 1.0, 1.0]


def test_every_token_beyond_the_free_ones_costs():
    scores = length_scores(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2, 3, 6]), free=3, penalty=0.25)
    assert scores.tolist() == [1.0, 1.0, 0.25]


@pytest.mark.parametrize(
    ("response", "size", "expected"),
    [
        ((1, 2, 3, 4), 2, 0.0),
        ((1, 2, 1, 2, 1), 2, 0.5),  # 12 21 12 21: two of four stand there before
        ((7, 7, 7, 7), 1, 0.75),
        ((7, 7, 7), 4, 0.0),  # no run of four
        ((7, 7, 7, 7), 4, 0.0),  # one run
        ((), 2, 0.0),
    ],
)
def test_repetition_is_the_share_of_runs_that_stand_there_before(response, size, expected):
    assert repetition(response, size) == expected
