"""The first update reuses scoring's forward pass of the policy if it can; full weights are held
until then.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.train.forward import HeldPolicy
from tests.oracle.cases import Record, ppo_config, ppo_models, ppo_trainer, run_simple

ONE_PASS = {"minibatch_size": 8, "micro_batch_size": 8, "num_epochs": 2, "num_steps": 2}


def trainer_of(rollout_gather=True, **ppo):
    config = ppo_config("base", **{**ONE_PASS, **ppo})
    config = replace(config, rollout=replace(config.rollout, gather=rollout_gather))
    return ppo_trainer(config, ppo_models(), "simple", Record())


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 2 * (1 + 1)),
        ({"gather": False}, 2 * (1 + 1)),  # the engine has its weights anyway
        ({"micro_batch_tokens": 1000}, 2 * (1 + 1)),
        ({"num_epochs": 1}, 2 * 1),
        ({"value_warmup_steps": 1}, 1 + (1 + 1)),
        ({"reuse_forward": False}, 2 * (1 + 2)),
        ({"micro_batch_size": 4}, 2 * (2 + 2 * 2)),
        ({"minibatch_size": 4}, 2 * (1 + 2 * 2)),
    ],
)
def test_the_policy_makes_this_many_forward_passes_in_a_step(options, passes, one_rank):
    """Two steps of two epochs on 8 rows."""
    trainer, reads = trainer_of(**options), []
    outputs = trainer.passes.policy_outputs
    trainer.passes.policy_outputs = lambda tokens: (reads.append(len(tokens.input_ids)), outputs(tokens))[1]
    trainer.fit()
    assert len(reads) == passes


@pytest.mark.parametrize("more", [{"num_epochs": 1}, {"num_epochs": 2, "kl_loss_coef": 0.1, "entropy_coef": 0.1}])
def test_reuse_changes_no_result(more, one_rank):
    (weights, metrics), (others, other_metrics) = (
        run_simple(ppo_config("base", **{**ONE_PASS, **more, "reuse_forward": reuse})) for reuse in (True, False)
    )
    for one, other in zip(metrics, other_metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    for name, tensor in weights.items():
        assert_close(tensor, others[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"reuse_forward": False}, {"num_steps": 2, "value_warmup_steps": 1}])
def test_an_update_counts_the_tokens_of_one_model_in_each_epoch(options, one_rank):
    """In the first step that trains the policy, which is the last one here."""
    trainer = trainer_of(**{"num_steps": 1, **options})
    trainer.fit()
    assert trainer._read.num_epochs == 2
    assert trainer._read.update == 2 * trainer._read.score > 0


def test_what_a_check_scores_is_not_kept(one_rank):
    """A check scores without a held policy, so that its graph is freed."""
    trainer = trainer_of()
    trainer._first_pass = None  # calling it would fail
    trainer.score(trainer.collect())
    assert not trainer._read.reused


def test_a_step_that_is_skipped_leaves_nothing_for_the_next_one(one_rank):
    trainer = trainer_of()
    with HeldPolicy(trainer.models.policy) as held:
        rollout = trainer.score(trainer.collect(), held)
        assert held._first_pass is not None
        rollout.scores[3] = math.nan
        assert trainer.train_on(rollout, held)["nonfinite_responses"] == 1
    named = f"{rollout.prompt_indices[3]} (score)"
    warning = f"step 1 is skipped: these prompts have numbers that are not finite: {named}"
    assert trainer.report.warnings == [warning]
    assert held._first_pass is None


class Sharded:
    """Records the calls of a trained model, and whether its full weights were held."""

    has_full_weights = False

    def __init__(self, engine):
        self.engine, self.depth, self.events = engine, 0, []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def __call__(self, *args, **kwargs):
        if torch.is_grad_enabled():
            self.events.append(("forward", self.depth > 0))
        return self.engine(*args, **kwargs)

    def backward(self, loss):
        self.events.append(("backward", self.depth > 0))
        self.engine.backward(loss)

    def step(self, update):
        self.events.append(("step", self.depth > 0))
        return self.engine.step(update)

    @contextmanager
    def gathered(self, enabled=True):
        self.depth += enabled
        try:
            yield self.engine.module
        finally:
            self.depth -= enabled


@pytest.mark.parametrize("rollout_gather", [True, False])
@pytest.mark.parametrize("gather", [True, False])
def test_trained_models_are_held_for_their_passes_and_given_back_before_the_optimizer(rollout_gather, gather, one_rank):
    """If an update gathers layer by layer, scoring's pass is not kept: its weights are gone."""
    trainer = trainer_of(rollout_gather, gather=gather, num_steps=1)
    policy, value = Sharded(trainer.models.policy), Sharded(trainer.models.value_model)
    trainer.passes.models = replace(trainer.models, policy=policy, value_model=value)
    trainer.sampler.policy = policy
    trainer.fit()
    epoch = [("forward", gather), ("backward", gather), ("step", False)]
    assert policy.events == value.events == epoch * 2
    assert policy.depth == value.depth == 0


def test_weights_are_given_back_when_an_update_fails(one_rank):
    trainer = trainer_of(num_steps=1)
    policy = Sharded(trainer.models.policy)
    trainer.passes.models = replace(trainer.models, policy=policy)
    trainer.sampler.policy = policy

    def broken(loss):
        raise RuntimeError("out of memory")

    policy.backward = broken
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit()
    assert policy.depth == 0
