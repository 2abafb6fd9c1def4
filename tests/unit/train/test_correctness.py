"""The statements of docs/correctness.md about a complete trainer."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.config.objectives import KLEstimator, PPOConfig
from rlhf_cli.config.sections import RolloutConfig
from rlhf_cli.data.token_batches import EndTokens
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.heads import TokenScorer
from rlhf_cli.models.load_models import load_sequence_classifier
from rlhf_cli.models.load_tokenizer import pad_id
from rlhf_cli.rewards.reward_model import RewardModel
from rlhf_cli.train.ppo_metrics import batch_metrics
from rlhf_cli.train.reward import RankingData, RewardTrainer
from tests.oracle.cases import (
    CPU,
    END_IDS,
    EOS,
    OPTIM,
    Record,
    ppo_config,
    ppo_models,
    ppo_trainer,
    rm_config,
    rm_rows,
    run_simple,
)
from tests.oracle.engines import SimpleFrozen, SimpleTrain
from tests.unit.models.tiny import tiny_config


@pytest.mark.parametrize("shape", [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"micro_batch_tokens": 20}])
def test_a_run_does_not_depend_on_its_micro_batches(shape, one_rank):
    base, run = run_simple(ppo_config("base")), run_simple(ppo_config("base", **shape))
    for one, other in zip(run[1], base[1], strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    for name, tensor in run[0].items():
        assert_close(tensor, base[0][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_a_run_does_not_depend_on_which_token_pads(architecture, one_rank):
    """Pad == EOS, as for a tokenizer without a pad token; 0 and 77 are ordinary tokens."""
    runs = [run_simple(ppo_config("base"), architecture, pad_id) for pad_id in (0, EOS, 77)]
    for weights, metrics in runs[1:]:
        for one, other in zip(metrics, runs[0][1], strict=True):
            assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
        for name, tensor in weights.items():
            assert_close(tensor, runs[0][0][name], rtol=1e-4, atol=1e-6)


def test_a_tokenizer_without_a_pad_token_pads_with_eos():
    tokenizer = byte_tokenizer()
    assert pad_id(tokenizer) == tokenizer.pad_token_id != EOS
    tokenizer.pad_token = None
    assert pad_id(tokenizer) == EOS


def test_two_runs_with_one_seed_are_identical_and_with_another_are_not(one_rank):
    first, second = run_simple(ppo_config("base")), run_simple(ppo_config("base"))
    assert first[1] == second[1]
    assert all(torch.equal(second[0][name], tensor) for name, tensor in first[0].items())
    config = ppo_config("base")
    assert run_simple(replace(config, run=replace(config.run, seed=6)))[1] != first[1]


def scored_rollout(**more):
    trainer = ppo_trainer(ppo_config("base", **more), ppo_models(), "simple", Record())
    return trainer, trainer.score(trainer.collect())


def test_the_first_minibatch_has_ratio_one_and_nothing_clipped(one_rank):
    """Exactly, because update and scoring run the same micro-batches of one row."""
    trainer, rollout = scored_rollout(micro_batch_size=1)
    sums = trainer._accumulate(trainer.estimate(rollout), [0, 1, 2, 3], 1, trainer._policy_backward)
    assert sums["approx_kl"] == 0
    assert sums["clipfrac/policy"] == 0


def test_padding_that_is_next_to_impossible_leaves_the_gradient_finite(one_rank):
    """If old or reference logprobs are +-300 on padding, exp of the difference is infinite. The
    masked loss excludes it, and its gradient must be 0 there, not NaN.
    """
    trainer, rollout = scored_rollout(kl_loss_coef=0.5, kl_loss_estimator=KLEstimator.k3)
    batch, rows = trainer.estimate(rollout), [0, 1, 2, 3]
    tokens = trainer.passes.collate([rollout.sequences[row] for row in rows])
    mask = tokens.response_mask
    assert not mask.all()
    part = batch.rows(rows, mask, CPU)
    for far in (300.0, -300.0):
        junk = {name: torch.where(mask, getattr(part, name), far) for name in ("logprobs", "ref_logprobs")}
        loss, _ = trainer.policy_objective(replace(part, **junk), tokens)
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in trainer.models.policy.module.parameters())


def test_rows_that_only_keep_ranks_in_step_add_nothing(one_rank):
    """Their mask is 0 everywhere, although their logprobs, advantages and KL are real."""
    trainer, rollout = scored_rollout(kl_loss_coef=0.5, entropy_coef=0.1)
    tokens = trainer.passes.collate(rollout.sequences[:2])
    part = trainer.estimate(rollout).rows([0, 1], torch.zeros_like(tokens.response_mask), CPU)
    loss, sums = trainer.policy_objective(part, tokens)
    loss.backward()
    assert loss.item() == 0
    assert set(sums) == {"loss/policy", "loss/kl", "approx_kl", "clipfrac/policy"}
    assert not any(value.item() for value in sums.values())
    assert not any(p.grad.any() for p in trainer.models.policy.module.parameters())


@pytest.mark.parametrize("filler", [math.nan, 999.0, -math.inf])
def test_what_stands_behind_a_response_changes_no_estimate_and_no_metric(filler, one_rank):
    trainer, rollout = scored_rollout()
    assert not rollout.response_mask.all()
    names = ("logprobs", "ref_logprobs", "values", "entropy")
    filled = {name: getattr(rollout, name).masked_fill(~rollout.response_mask, filler) for name in names}
    clean, dirty = trainer.estimate(rollout), trainer.estimate(replace(rollout, **filled))
    for name in ("rewards", "advantages", "returns"):
        assert torch.equal(getattr(clean, name), getattr(dirty, name)), name
    assert batch_metrics(clean, PPOConfig()) == batch_metrics(dirty, PPOConfig())


def test_the_score_stands_on_the_last_token_also_at_the_longest_response(one_rank):
    trainer, rollout = scored_rollout(kl_coef=0.0)
    rewards, lengths = trainer.estimate(rollout).rewards, rollout.response_mask.sum(dim=1)
    assert int(lengths.max()) == trainer.config.rollout.max_new_tokens
    for row, length in enumerate(lengths.tolist()):
        assert rewards[row, length - 1] == rollout.scores[row]
        assert not rewards[row, : length - 1].any()
        assert not rewards[row, length:].any()


def test_the_penalty_in_the_reward_and_the_one_in_the_loss_are_switched_apart(one_rank):
    in_loss, rollout = scored_rollout(kl_coef=0.0, kl_loss_coef=0.5)
    neither, _ = scored_rollout(kl_coef=0.0)
    assert torch.equal(in_loss.estimate(rollout).rewards, neither.estimate(rollout).rewards)
    both, _ = scored_rollout(kl_coef=0.3, kl_loss_coef=0.5)
    assert not torch.equal(both.estimate(rollout).rewards, neither.estimate(rollout).rewards)
    assert not both.estimate(rollout).rewards.requires_grad


def test_every_sample_is_used_once_an_epoch(one_rank):
    trainer = ppo_trainer(ppo_config("four-epochs"), ppo_models(), "simple", Record())
    batches = list(trainer._minibatches())
    assert [len(batch) for batch in batches] == [4] * 8
    epochs = [batches[place] + batches[place + 1] for place in range(0, 8, 2)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4  # in an order of its own


@pytest.mark.parametrize("shape", [{"num_epochs": 1, "minibatch_size": 8}, {"num_epochs": 3, "minibatch_size": 2}])
def test_metrics_weigh_every_token_once_whatever_the_minibatches(shape, one_rank):
    """With a learning rate of 0 every pass sees the same model, so the means must be those of one
    pass over all.
    """
    still = replace(OPTIM, learning_rate=0.0)
    found = []
    for options in ({"num_epochs": 1, "minibatch_size": 8}, shape):
        config = replace(ppo_config("base", micro_batch_size=2, **options), optim=still, value_optim=still)
        trainer = ppo_trainer(config, ppo_models(), "simple", Record())
        found.append(trainer.update(trainer.estimate(trainer.score(trainer.collect()))))
    for name in ("loss/policy", "loss/value", "approx_kl", "clipfrac/policy", "clipfrac/value"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-5, abs=1e-7), name
    assert found[0]["loss/value"] > 0.01


def test_a_clearly_negative_kl_is_warned_of(one_rank):
    """The reference prefers the responses to the policy that should have drawn them."""
    sound, rollout = scored_rollout()
    other, _ = scored_rollout()
    for _ in range(24):
        sound._warn_of_negative_kl(rollout)
        other._warn_of_negative_kl(replace(rollout, ref_logprobs=rollout.logprobs + 1.0))
    assert other.report.warnings == []  # 192 responses are too few for a verdict
    sound._warn_of_negative_kl(rollout)
    other._warn_of_negative_kl(replace(rollout, ref_logprobs=rollout.logprobs + 1.0))
    assert sound.report.warnings == []
    assert other.report.warnings == [
        "the mean KL is clearly negative: responses are not sampled from the policy that scores them"
    ]


def test_a_custom_end_token_ends_a_response_and_saves_it_the_penalty(one_rank):
    trainer, rollout = scored_rollout(missing_eos_penalty=5.0, kl_coef=0.0)
    last = [sequence.response_ids[-1] for sequence in rollout.sequences]
    assert any(token in END_IDS - {EOS} for token in last)
    assert rollout.ended.tolist() == [token in END_IDS for token in last]
    paid = rollout.scores - trainer.estimate(rollout).rewards.sum(dim=1)
    assert_close(paid, torch.where(rollout.ended, 0.0, 5.0), atol=1e-5, rtol=0)


def reward_trainer(model, rows, eval_rows, pad_id=0):
    engine, record = SimpleTrain(TokenScorer(model), OPTIM, 3), Record()
    return RewardTrainer(rm_config("pairs"), engine, RankingData(rows, eval_rows, pad_id), record, record)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_training_evaluation_and_ppo_read_the_same_score(architecture, one_rank):
    """Reward-model training has no prompts and PPO has, but the ids are the same."""
    model = load_sequence_classifier(tiny_config(architecture), "model", byte_tokenizer(), 1, new_head=True)
    rows = rm_rows("pairs")
    trainer = reward_trainer(model, rows, [], pad_id=EOS)
    in_training = trainer.scores(rows)
    in_evaluation = trainer._over_all(rows, trainer._scores)
    answers = [answer for row in rows for answer in row.answers]
    in_ppo = RewardModel(SimpleFrozen(TokenScorer(model)), EOS, EndTokens(frozenset({EOS}), 0), CPU).score(answers)
    assert_close(in_evaluation, in_training, atol=1e-6, rtol=0)
    assert_close(in_ppo, in_training, atol=1e-6, rtol=0)
    model.config.pad_token_id = None
    ids = [torch.tensor([[*answer.prompt_ids, *answer.response_ids]]) for answer in answers]
    with torch.no_grad():
        plain = torch.cat([model(one).logits[:, 0] for one in ids])
    assert_close(in_ppo, plain, atol=1e-6, rtol=0)


def test_sampling_is_neutral_by_default():
    """Only temperature and top-p change the distribution; batching changes no response."""
    config = RolloutConfig()
    assert (config.temperature, config.top_p) == (1.0, 1.0)
    how = {"micro_batch_size", "micro_batch_tokens", "gather"}
    assert RolloutConfig.__dataclass_fields__.keys() == {"max_new_tokens", "temperature", "top_p"} | how


def test_the_rows_of_a_step_are_drawn_with_numbers_of_their_own(one_rank):
    """Eight prompts have eight keys; the same prompts have others in the next step."""
    trainer = ppo_trainer(ppo_config("base"), ppo_models(), "simple", Record())
    seen: Counter[str] = Counter()
    sample = trainer.sampler.sample
    trainer.sampler.sample = lambda prompts, keys: (seen.update(keys), sample(prompts, keys))[1]
    trainer.collect()
    trainer.state.step = 1
    trainer.collect()
    assert len(seen) == 16


def test_swapping_better_and_worse_mirrors_the_margins(one_rank):
    rows = rm_rows("pairs")
    swapped = [replace(row, answers=row.answers[::-1]) for row in rows]
    model = load_sequence_classifier(tiny_config("gpt2"), "model", byte_tokenizer(), 1, new_head=True)
    trainer = reward_trainer(model, rows, rows)
    straight = trainer.evaluate()
    trainer.eval_rows = swapped
    mirrored = trainer.evaluate()
    assert mirrored["eval/margin"] == pytest.approx(-straight["eval/margin"], abs=1e-6)
    assert mirrored["eval/accuracy"] == pytest.approx(1 - straight["eval/accuracy"], abs=1e-6)


def test_equal_scores_cost_ln_2(one_rank):
    model = load_sequence_classifier(tiny_config("gpt2"), "model", byte_tokenizer(), 1, new_head=True)
    with torch.no_grad():
        model.score.weight.zero_()
    rows = rm_rows("pairs")
    trainer = reward_trainer(model, rows, rows)
    figures = trainer.evaluate()
    assert figures["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert figures["eval/accuracy"] == 0.5
