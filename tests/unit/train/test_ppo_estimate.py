"""`estimate` and `batch_metrics` on a scored rollout, by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.config.objectives import KLEstimator, MissingEOS, PPOConfig
from rlhf_cli.data.token_batches import TokenSequence
from rlhf_cli.train.batch import Episode, Rollout
from rlhf_cli.train.ppo import PPOState, PPOTrainer
from rlhf_cli.train.ppo_metrics import batch_metrics
from rlhf_cli.train.shaping import shaped_scores


def episode(length, ended, score, logprob, ref):
    row = torch.ones(length)
    return Episode(
        prompt_index=0,
        sequence=TokenSequence((1,), tuple(range(2, 2 + length))),
        ended=ended,
        logprobs=logprob * row,
        ref_logprobs=ref * row,
        values=0.5 * row,
        entropy=2.0 * row,
        source_scores=torch.tensor([score]),
    )


ROLLOUT = Rollout.of(
    [episode(2, True, 1.0, -1.0, -1.5), episode(1, False, -2.0, -3.0, -2.0)], lambda scores: scores.sum(dim=1)
)


def estimate(**options):
    ppo = PPOConfig(**{"kl_coef": 0.1, "gamma": 1.0, "lam": 1.0, "missing_eos_penalty": 0.25, **options})
    trainer = SimpleNamespace(config=SimpleNamespace(ppo=ppo), state=PPOState(kl_coef=ppo.kl_coef))
    return PPOTrainer.estimate(trainer, ROLLOUT)


def test_rewards_are_scores_less_penalties_and_kl():
    """Row 1: k1 = 0.5 a token; row 2: k1 = -1, and no EOS."""
    batch = estimate()
    assert_close(batch.rewards, torch.tensor([[-0.05, 0.95], [-2.15, 0.0]]))
    assert_close(batch.returns, torch.tensor([[0.90, 0.95], [-2.15, 0.0]]))


@pytest.mark.parametrize(("estimator", "second"), [(KLEstimator.k1, -1.0), (KLEstimator.k2, 0.5)])
def test_the_estimator_is_the_one_in_the_options(estimator, second):
    assert_close(estimate(kl_estimator=estimator).rewards[1, 0], torch.tensor(-2.25 - 0.1 * second))


def test_whitened_rewards_keep_their_mean():
    """Rewards -0.05, 0.95, -2.15 have the mean -1.25 / 3; they include the KL penalty."""
    raw = torch.tensor([-0.05, 0.95, -2.15])
    expected = (raw - raw.mean()) / raw.std(correction=0) + raw.mean()
    got = estimate(whiten_rewards=True).rewards
    assert_close(got[ROLLOUT.response_mask], expected, atol=1e-5, rtol=0)
    assert got[1, 1] == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.0, -2.0]),
        ({"reward_clip": 0.5}, [0.5, -0.5]),
        ({"missing_eos_penalty": 0.75}, [1.0, -2.75]),
        ({"missing_eos_penalty": 0.75, "missing_eos": MissingEOS.replace}, [1.0, -0.75]),
        ({"reward_clip": 0.5, "missing_eos_penalty": 0.75}, [0.5, -1.25]),  # the penalty is not clipped
        ({"min_length": 2, "min_length_penalty": 0.25}, [1.0, -2.25]),
        ({"min_length": 3, "min_length_penalty": 0.25, "missing_eos_penalty": 0.5}, [0.75, -2.75]),
        ({"length_penalty": 0.5}, [0.0, -2.5]),
        ({"length_penalty": 0.5, "length_penalty_from": 1}, [0.5, -2.0]),
        ({"repetition_penalty": 2.0, "repetition_size": 1}, [1.0, -2.0]),  # no token twice
    ],
)
def test_shaped_scores(options, expected):
    """Two tokens with EOS and a score of 1; one token without EOS and a score of -2."""
    assert shaped_scores(ROLLOUT, PPOConfig(**options)).tolist() == expected


def test_advantages_are_whitened_over_the_real_tokens():
    """Before: returns - 0.5 = 0.40, 0.45, -2.65; mean -0.6."""
    batch = estimate()
    raw = torch.tensor([0.40, 0.45, -2.65])
    expected = (raw - raw.mean()) / raw.std(correction=0)
    assert_close(batch.advantages[ROLLOUT.response_mask], expected, atol=1e-5, rtol=0)
    assert batch.advantages[1, 1] == 0


def test_the_summary_weighs_tokens_once_and_responses_once():
    got = batch_metrics(estimate(), PPOConfig())
    assert got == pytest.approx(
        {
            "score": -0.5,
            "score_std": 1.5,
            "kl": (1.0 - 1.0) / 2,
            "kl_per_token": 0.0,
            "reward": (0.9 - 2.15) / 2,
            "return": (0.9 + 0.95 - 2.15) / 3,
            "value": 0.5,
            "advantage_std": ((1.0 + 1.05**2 + 2.05**2) / 3) ** 0.5,  # of 0.40, 0.45, -2.65
            "entropy": 2.0,
            "response_length": 1.5,
            "eos_rate": 0.5,
            "repetition": 0.0,
        },
        abs=1e-6,
    )
