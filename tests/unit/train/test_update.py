"""The trainers' sums, means and call order by hand, with stand-ins for engines and models."""

from __future__ import annotations

import json
import math
from collections import deque
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.objectives import PPOConfig, PretrainConfig, RewardConfig
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.config.sections import CheckpointConfig, RolloutConfig, RunConfig
from rlhf_cli.data.preferences import Ranking
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.sampler import batch_indices
from rlhf_cli.data.token_batches import EndTokens, TokenSequence, collate
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import StepResult
from rlhf_cli.engine.roofline import Work
from rlhf_cli.models.model_size import ModelSize
from rlhf_cli.rewards.ensemble import RewardEnsemble
from rlhf_cli.train import ppo
from rlhf_cli.train.batch import Episode, PPOBatch, PPOTargets, Rollout, Samples
from rlhf_cli.train.flops import ModelSizes, TokensRead
from rlhf_cli.train.forward import ForwardPasses
from rlhf_cli.train.ppo import Monitors, PPOData, PPOState, PPOTrainer
from rlhf_cli.train.ppo_metrics import batch_metrics
from rlhf_cli.train.reward import Pairs, RankingData, RewardTrainer, num_steps, pair_records
from rlhf_cli.train.shaping import shaped_scores
from tests.oracle.cases import CPU, Record

LOG2, LOG3 = math.log(2), math.log(3)


class Engine:
    """Replaces a trained model: returns one tensor, keeps gradients, records its update numbers."""

    has_full_weights = True

    def __init__(self, output=None, skips=()):
        self.output, self.skips, self.updates, self.inputs = output, skips, [], []

    def __call__(self, input_ids, **places):
        self.inputs.append({"input_ids": input_ids, **places})
        return self.output

    @contextmanager
    def gathered(self, enabled):
        yield self

    def backward(self, loss):
        loss.backward()

    def step(self, update):
        self.updates.append(update)
        return StepResult(0.5, len(self.updates) in self.skips, 0.25)


def config_of(seed=7, pretrain=None, temperature=1.0, **options):
    """Four responses per step, two per minibatch, two epochs."""
    ppo = {"num_steps": 3, "batch_size": 4, "minibatch_size": 2, "micro_batch_size": 2, "num_epochs": 2, **options}
    return TrainPPOConfig(
        run=RunConfig(name="x", seed=seed),
        rollout=RolloutConfig(temperature=temperature),
        ppo=PPOConfig(**ppo),
        pretrain=pretrain or PretrainConfig(),
        checkpoint=CheckpointConfig(every_steps=0),
    )


def rewards(reward_model=None):
    """The default: the reward model is the only source."""
    return RewardEnsemble([RewardSourceConfig(name="reward_model")], None, reward_model, {}, {})


def trainer_of(config, policy=None, value_model=None, texts=(), prompts=()):
    models = SimpleNamespace(policy=policy or Engine(), value_model=value_model or Engine(), rewards=rewards())
    passes = ForwardPasses(config, models, EndTokens(frozenset(), 0), packed=False)
    data = PPOData(list(prompts), list(texts))
    return PPOTrainer(config, passes, SimpleNamespace(), data, None, None, Monitors())


ONE_SOURCE = rewards().weighted_sum


def sequence(length, prompt=1):
    return TokenSequence((1,) * prompt, tuple(range(2, 2 + length)))


def batch_of(lengths):
    """A rollout of zeros, for tests that depend on lengths only."""
    row = [torch.zeros(length) for length in lengths]
    episodes = [Episode(0, sequence(n), True, z, z, z, z, torch.zeros(1)) for n, z in zip(lengths, row, strict=True)]
    rollout = Rollout.of(episodes, ONE_SOURCE)
    return PPOBatch(rollout, *[torch.zeros_like(rollout.values)] * 3)


def updated(config, sums, state=None, skips=((), ())):
    """Run `update` on minibatches of 3 and 6 tokens, twice each, whose value model reports `sums`.
    Also return the calls, model by model, and the update numbers of both models.
    """
    policy, value_model = Engine(skips=skips[0]), Engine(skips=skips[1])
    trainer = trainer_of(config, policy, value_model)
    trainer.state = state or PPOState(0.1)
    calls = []
    trainer._minibatches = lambda: iter([[0, 1], [2, 3]] * 2)

    def accumulate(batch, rows, tokens, backward):
        is_value = backward == trainer._value_backward
        assert is_value or backward == trainer._policy_backward
        calls.append((rows, tokens, "value" if is_value else "policy"))
        return {name: total for name, total in sums.items() if name.endswith("/value") is is_value}

    trainer._accumulate = accumulate
    return trainer.update(batch_of([1, 2, 2, 4])), calls, (policy.updates, value_model.updates)


def test_an_update_divides_by_the_tokens_of_all_its_minibatches(one_rank):
    """Sums of 9 and 4.5 in each of four minibatches of 3, 6, 3 and 6 tokens: 36 / 18, 18 / 18."""
    metrics, calls, updates = updated(config_of(), {"loss/value": 9.0, "loss/policy": 4.5})
    small, large = ([0, 1], 3), ([2, 3], 6)
    assert calls == [(*rows, model) for rows in (small, large) for model in ("policy", "value")] * 2
    assert updates == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert metrics == {
        "loss/value": 2.0,
        "loss/policy": 1.0,
        "grad_norm/value": 0.5,
        "grad_norm/policy": 0.5,
        "lr/value": 0.25,
        "lr/policy": 0.25,
        "num_updates": 4.0,
        "skipped_updates": 0.0,
    }


def test_updates_are_numbered_over_the_run_and_the_policys_from_the_end_of_its_warmup(one_rank):
    """Step 2, with four updates per step; the first step trained the value model only."""
    _, calls, updates = updated(config_of(value_warmup_steps=1), {"loss/value": 0.0}, PPOState(0.1, step=2))
    assert updates == ([4, 5, 6, 7], [8, 9, 10, 11])
    assert [model for *_, model in calls] == ["policy", "value"] * 4


def test_the_policy_learns_from_the_first_step_after_the_warmup(one_rank):
    for step, learns in ((0, False), (1, True)):
        metrics, calls, updates = updated(config_of(value_warmup_steps=1), {"loss/value": 0.0}, PPOState(0.1, step))
        assert [model for *_, model in calls] == (["policy", "value"] if learns else ["value"]) * 4
        assert updates == ([0, 1, 2, 3] if learns else [], [4 * step + n for n in range(4)])
        assert ("lr/policy" in metrics) is learns


def test_skipped_updates_of_both_models_count(one_rank):
    """The policy skips its first and third update, the value model its third."""
    metrics, *_ = updated(config_of(), {"loss/value": 0.0}, skips=((1, 3), (3,)))
    assert metrics["skipped_updates"] == 3.0


@pytest.mark.parametrize(("target", "num_updates"), [(0.5, 4), (0.49, 1), (0.24, 1), (2.0, 4)])
def test_the_updates_of_a_step_end_once_the_mean_kl_is_above_its_target(target, num_updates, one_rank):
    """1.5 nats over the 3 tokens of the first minibatch: 0.5; the target itself is not above the
    target.
    """
    metrics, *_ = updated(config_of(early_stop_kl=target), {"approx_kl": 1.5})
    assert metrics["num_updates"] == num_updates


def test_a_value_warmup_has_no_kl_to_end_it(one_rank):
    config = config_of(early_stop_kl=1e-6, value_warmup_steps=1)
    metrics, *_ = updated(config, {"loss/value": 0.0})
    assert metrics["num_updates"] == 4.0


@pytest.mark.parametrize(("step", "kl_coef"), [(0, 0.1), (1, 0.12), (2, 0.12)])
def test_the_controller_starts_after_the_value_warmup(step, kl_coef, one_rank):
    """A KL of 12 against a target of 4, cut to a fifth: 0.1 * (1 + 0.2 * 4 responses / 4)."""
    trainer = trainer_of(config_of(value_warmup_steps=1, kl_target=4.0, kl_horizon=4))
    trainer.state = PPOState(0.1, step)
    assert trainer._next_state(12.0) == PPOState(pytest.approx(kl_coef), step + 1)


def test_without_a_target_the_coefficient_stays(one_rank):
    trainer = trainer_of(config_of(kl_coef=0.3))
    assert trainer._next_state(12.0) == PPOState(0.3, 1)


def test_two_steps_take_every_prompt_once_with_keys_of_seed_step_and_row(one_rank):
    """Eight prompts, four per step; the keys do not mix up seed, step and batch size."""
    prompts = [Prompt("", (n,), str(n)) for n in range(8)]
    trainer = trainer_of(config_of(seed=6), prompts=prompts)
    asked = []
    trainer.sampler.sample = lambda ids, keys: asked.append((ids, keys))
    trainer.collect()
    trainer.state = PPOState(0.1, 1)
    trainer.collect()
    assert sorted(ids for step in asked for ids in step[0]) == [(n,) for n in range(8)]
    assert [step[1] for step in asked] == [["6/0/0", "6/0/1", "6/0/2", "6/0/3"], ["6/1/0", "6/1/1", "6/1/2", "6/1/3"]]
    assert asked[1][0] == [(n,) for n in batch_indices(8, 4, step=1, seed=6)]


def test_the_logged_sample_is_one_row_of_the_step_with_its_prompt(one_rank):
    """Step 2 logs row 2, whose prompt is number 0."""
    trainer = trainer_of(config_of(), prompts=[Prompt(f"prompt {n}", (n,), str(n)) for n in range(4)])
    records = {}
    trainer.report = SimpleNamespace(rollout=records.__setitem__)
    trainer.monitors = Monitors(response_text=str)
    trainer.state = PPOState(0.1, step=1)
    trainer._log_rollout(replace(batch_of([1, 2, 3, 1]).rollout, prompt_indices=[3, 1, 0, 2]))
    sample = {"prompt": "prompt 0", "response": "(2, 3, 4)", "score": 0.0, "kl": 0.0}
    assert records == {2: {"scores": [0.0] * 4, "kl": [0.0] * 4, "lengths": [1, 2, 3, 1], "sample": sample}}


JUNK = 50.0  # the value of padding below


def policy_case(**options):
    """Two responses of 2 and 1 tokens over a vocabulary of 2 with logits of 0: every logprob is
    -log 2. Old logprobs give the ratios 2, 1 and 1/2; advantages are 3, -1 and -5. The padding
    holds junk.
    """
    logits = torch.zeros(3, 2, requires_grad=True)
    tokens = collate([TokenSequence((1,), (0, 1)), TokenSequence((1,), (1,))], 0, CPU)
    part = PPOTargets(
        mask=tokens.response_mask,
        logprobs=torch.tensor([[-2 * LOG2, -LOG2], [0.0, JUNK]]),
        ref_logprobs=torch.tensor([[-LOG2 - 1, -LOG2], [-LOG2 + 3, JUNK]]),
        values=torch.zeros(2, 2),
        advantages=torch.tensor([[3.0, -1.0], [-5.0, -JUNK]]),
        returns=torch.zeros(2, 2),
    )
    trainer = trainer_of(config_of(**options), policy=Engine(logits))
    sums = trainer._policy_backward(part, tokens, num_tokens=10)
    (read,) = trainer.models.policy.inputs
    assert (read["rows"].tolist(), read["columns"].tolist()) == ([0, 0, 1], [0, 1, 0])
    return sums, logits.grad


def test_the_policys_gradients_and_sums_leave_the_padding_out(one_rank):
    """Losses: -min(2 * 3, 1.2 * 3) = -3.6, clipped; 1 * 1; -min(-2.5, 0.8 * -5) = 4, clipped. Sum
    1.4.

    approx_kl: 1 - log 2, 0 and log 2 - 1/2. Only the middle token has a gradient: its loss is
    -ratio * A, so that d/dlogits = -A * (one_hot - p) / 10 = (one_hot - 0.5) / 10, at token 1.
    """
    sums, gradient = policy_case()
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(
        {"loss/policy": 1.4, "approx_kl": 0.5, "clipfrac/policy": 2.0}, abs=1e-6
    )
    assert_close(gradient, torch.tensor([[0.0, 0.0], [-0.05, 0.05], [0.0, 0.0]]), atol=1e-7, rtol=0)


def test_the_kl_and_the_entropy_in_the_loss_leave_the_padding_out(one_rank):
    """k2 of log-ratios 1, 0 and -3: (1 + 0 + 9) / 2. Its gradient is k1 * (one_hot - p) * 0.4 / 10,
    at tokens 0, 1, 1.

    At equal logits the entropy has none.
    """
    sums, gradient = policy_case(kl_loss_coef=0.4, entropy_coef=0.2)
    assert float(sums["loss/kl"]) == pytest.approx(5.0, abs=1e-5)
    assert_close(gradient, torch.tensor([[0.02, -0.02], [-0.05, 0.05], [0.06, -0.06]]), atol=1e-6, rtol=0)


def test_the_entropy_pulls_the_likelier_token_down_and_no_padding(one_rank):
    """Probabilities 1/4 and 3/4: d(entropy)/d(logit 1) = -p0 p1 log 3 = -3/16 log 3, and its
    negative at logit 0.
    """
    logits = torch.tensor([[0.0, LOG3], [0.0, LOG3]], requires_grad=True)
    trainer = trainer_of(config_of(entropy_coef=0.5), policy=Engine(logits))
    tokens, zero = collate([TokenSequence((1,), (1, 1))], 0, CPU), torch.zeros(1, 2)
    mask = torch.tensor([[True, False]])  # the second token is not trained on
    trainer._policy_backward(PPOTargets(mask, zero, zero, zero, zero, zero), tokens, num_tokens=10)
    slope = 0.5 * 3 / 16 * LOG3 / 10
    assert_close(logits.grad, torch.tensor([[-slope, slope], [0.0, 0.0]]), atol=1e-7, rtol=0)


def test_the_values_gradients_and_sums_leave_the_padding_out(one_rank):
    """Values 1, 1 and 3 before the tokens; old ones 0, 1, 3; returns 0.9, 2, 1. Errors: the clipped
    value 0.2 is 0.7 off, the value itself 0.1, so 0.245 without gradient; 1 / 2; 4 / 2. Gradients:
    V - R by 10 tokens.
    """
    values = torch.tensor([[1.0, 1.0, JUNK], [3.0, JUNK, JUNK]], requires_grad=True)
    old = torch.tensor([[0.0, 1.0], [3.0, JUNK]])
    trainer = trainer_of(config_of(), value_model=Engine((values, None)))
    tokens, zero = trainer.passes.collate([sequence(2), sequence(1)]), torch.zeros(2, 2)
    returns = torch.tensor([[0.9, 2.0], [1.0, -JUNK]])
    part = PPOTargets(tokens.response_mask, zero, zero, old, zero, returns)
    sums = trainer._value_backward(part, tokens, num_tokens=10)
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(
        {"loss/value": 2.745, "clipfrac/value": 1.0}, abs=1e-5
    )
    assert_close(values.grad, torch.tensor([[0.0, -0.1, 0.0], [0.2, 0.0, 0.0]]), atol=1e-6, rtol=0)


def test_the_text_loss_is_a_mean_over_the_tokens_of_all_blocks(one_rank):
    """Two blocks of 3 and 1 tokens, every logprob -log 2 at any temperature: the mean is log 2.
    Gradient: coef * (p - one_hot) / 4 at each token.
    """
    logits = torch.zeros(4, 2, requires_grad=True)
    pretrain = PretrainConfig(path="x", coef=0.5, batch_size=2, micro_batch_size=2)
    texts = [TokenSequence((1,), (1, 1, 1)), TokenSequence((1,), (1,))]
    trainer = trainer_of(config_of(pretrain=pretrain, temperature=0.5), policy=Engine(logits), texts=texts)
    assert trainer._pretrain(0) == {"loss/pretrain": pytest.approx(LOG2, abs=1e-6)}
    assert_close(logits.grad, torch.tensor([[0.0625, -0.0625]] * 4), atol=1e-7, rtol=0)


def test_the_text_loss_takes_the_blocks_of_its_update(one_rank):
    """Four blocks, two per update: two updates of an epoch take each block once."""
    pretrain = PretrainConfig(path="x", batch_size=2, micro_batch_size=2)
    logits = torch.zeros(2, 60, requires_grad=True)
    trainer = trainer_of(
        config_of(pretrain=pretrain), Engine(logits), texts=[TokenSequence((1,), (50 + n,)) for n in range(4)]
    )
    for update in (2, 3):
        trainer._pretrain(update)
    seen = [inputs["input_ids"][:, 1].tolist() for inputs in trainer.models.policy.inputs]
    assert sorted(seen[0] + seen[1]) == [50, 51, 52, 53]
    assert seen == [[50 + n for n in batch_indices(4, 2, step, seed=7)] for step in (2, 3)]


def test_without_texts_there_is_no_text_loss(one_rank):
    assert trainer_of(config_of())._pretrain(0) == {}


def test_forward_passes_add_up_and_one_that_keeps_in_step_trains_on_no_token(one_rank):
    """Rows 3, 2, 1, 0 with responses of 1, 3, 1, 2 tokens and prompts of 1 are dealt by length: 1,
    3, 0, 2.
    """
    trainer, seen = trainer_of(config_of()), []
    trainer.passes.micro_batches = lambda sequences: [([0, 1], True), ([2, 3], True), ([2, 3], False)]

    def backward(part, tokens, num_tokens):
        seen.append((part.mask.tolist(), tokens.response_mask.tolist(), num_tokens))
        return {"v": torch.tensor(1.0), "w": part.mask.sum()}

    sums = trainer._accumulate(batch_of((2, 1, 3, 1)), [3, 2, 1, 0], 7, backward)
    short, long = [[True], [True]], [[True, True, False], [True, True, True]]
    assert seen == [(short, short, 7), (long, long, 7), ([[False] * 3] * 2, long, 7)]
    assert sums == {"v": 3.0, "w": 7.0}


def test_the_targets_of_a_forward_pass_are_those_of_its_own_rows(one_rank):
    """Each row's old logprobs equal its number, whatever the order of its sequence."""
    trainer, batch = trainer_of(config_of()), batch_of((4, 1, 3, 2))
    numbers = torch.arange(4.0)[:, None].expand(4, 4)
    batch = replace(batch, rollout=replace(batch.rollout, logprobs=numbers))
    seen = []

    def backward(part, tokens, _):
        seen.extend(zip(part.logprobs[:, 0].tolist(), tokens.response_mask.sum(dim=1).tolist(), strict=True))
        return {"v": torch.tensor(1.0)}

    trainer._accumulate(batch, [0, 1, 3, 2], 10, backward)
    assert sorted(seen) == [(0.0, 4), (1.0, 1), (2.0, 3), (3.0, 2)]


@pytest.mark.parametrize(("tokens", "expected"), [(None, [([0], True)]), (99, [([0], True), ([0], False)])])
def test_ranks_make_as_many_forward_passes_as_the_busiest_when_sizes_vary(tokens, expected, one_rank, monkeypatch):
    """Another rank has two passes. With a fixed number of rows all ranks have equally many, and
    nothing is exchanged.
    """
    monkeypatch.setattr(distributed, "gather_all", lambda number: [number, 2])
    trainer = trainer_of(config_of(micro_batch_tokens=tokens))
    assert trainer.passes.micro_batches([sequence(1)]) == expected
    assert trainer.passes.micro_batches([sequence(1)], in_step=False) == [
        ([0], True)
    ]  # with full weights on every rank


def test_micro_batches_count_prompt_and_response_tokens(one_rank):
    """Two rows of 2 + 3 are 10 tokens."""
    rows = [sequence(3, prompt=2), sequence(3, prompt=2)]
    for tokens, expected in ((10, [([0, 1], True)]), (9, [([0], True), ([1], True)])):
        assert trainer_of(config_of(micro_batch_tokens=tokens)).passes.micro_batches(rows) == expected
    trainer = trainer_of(config_of(micro_batch_tokens=5))
    assert len(trainer.passes.micro_batches(rows)) == 2
    trainer.passes.packed = True  # the rows are alike, so that five tokens are all there are
    assert len(trainer.passes.micro_batches(rows)) == 1


@pytest.mark.parametrize(("packed", "read"), [(False, (2 + 4) + (3 + 9)), (True, 4 + 9)])
def test_the_tokens_that_models_read_are_counted(packed, read, one_rank):
    """Two models read 1 + 1 and 1 + 3 tokens, then 1 + 2 and 1 + 8; the longer text starts with the
    other.
    """
    trainer = trainer_of(config_of())
    trainer.passes.packed = packed
    for lengths in ((1, 3), (2, 8)):
        for _ in range(2):
            trainer.passes.collate([TokenSequence((1,), (1,) * length) for length in lengths])
    assert trainer.passes.take_count(num_models=2) == read
    assert trainer.passes.take_count(num_models=1) == 0


class ByLength(Engine):
    """The logit of token 1 is the row's number of real tokens (padding is 0); so is the value."""

    def __init__(self):
        super().__init__()
        self.held = []

    @contextmanager
    def gathered(self, enabled):
        self.held.append(enabled)
        yield self
        self.held.append("given back")

    def __call__(self, input_ids, rows=None, columns=None, **_):
        assert self.held[-1] != "given back"
        real = (input_ids > 0).sum(dim=1).float()
        if rows is None:
            return real[:, None].expand(input_ids.shape), None
        return torch.stack([torch.zeros(len(rows)), real[rows]], dim=1)


@pytest.mark.parametrize("gather", [True, False])
def test_scoring_keeps_the_order_of_its_sequences_and_their_lengths(gather, one_rank, monkeypatch):
    """Each row gets its own logits, values and score, although the longer rows are scored apart.
    Each model is held once, one after the other.
    """
    rows = [TokenSequence((1,), (1,) * length) for length in (3, 1, 2, 1)]
    config = config_of(micro_batch_tokens=6)
    config = replace(config, rollout=replace(config.rollout, gather=gather))
    trainer = trainer_of(config, policy=ByLength(), value_model=ByLength())
    trainer.models.reference = ByLength()
    trainer.models.rewards.reward_model = SimpleNamespace(
        engine=ByLength(), score=lambda part: torch.tensor([10.0 + len(one) for one in part])
    )
    trainer.passes.ends = SimpleNamespace(ended=lambda one: len(one.response_ids) < 3, pad_id=0)
    pad_to_same_count, in_step = distributed.pad_to_same_count, []
    monkeypatch.setattr(
        distributed, "pad_to_same_count", lambda groups: (in_step.append(groups), pad_to_same_count(groups))[1]
    )
    trainer.passes.num_read = 10**6  # tokens that a check read before do not count
    rollout = trainer.score(Samples([None] * 4, [7, 5, 3, 1], rows))
    assert rollout.prompt_indices == [7, 5, 3, 1]
    assert trainer._read == TokensRead(score=4 + 2 + 3 + 2)
    assert len(in_step) == (0 if gather else 4)  # if each pass gathers weights, ranks stay in step
    lengths = [4.0, 2.0, 3.0, 2.0]
    assert rollout.sequences == rows
    assert rollout.scores.tolist() == [14.0, 12.0, 13.0, 12.0]
    assert rollout.ended.tolist() == [False, True, True, True]
    assert rollout.values.tolist() == [[4.0, 4.0, 4.0], [2.0, 0.0, 0.0], [3.0, 3.0, 0.0], [2.0, 0.0, 0.0]]
    expected = torch.tensor([-math.log1p(math.exp(-n)) for n in lengths])  # log softmax of (0, n) at 1
    assert_close(rollout.logprobs[:, 0], expected, atol=1e-6, rtol=0)
    assert_close(rollout.ref_logprobs[:, 0], expected, atol=1e-6, rtol=0)
    certain = expected.exp()
    entropies = -(certain * expected + (1 - certain) * (1 - certain).log())
    assert_close(rollout.entropy[:, 0], entropies, atol=1e-5, rtol=0)
    for per_token in (rollout.logprobs, rollout.ref_logprobs, rollout.entropy):
        assert not per_token[~rollout.response_mask].any()
    models = trainer.models
    engines = (models.policy, models.reference, models.value_model, models.rewards.reward_model.engine)
    assert all(engine.held == [gather, "given back"] for engine in engines)


SIZES = ModelSizes(policy=ModelSize(10, 6, 1, 2), scorer=ModelSize(8, 0, 1, 2))


def test_the_work_of_a_step_by_hand():
    """Texts of 3 + 2 and 1 + 2 tokens. Policy: 2 * 10 * 8 + 2 * 6 * 4 + 2 * 2 * (25 + 9) = 344;
    scorer: 128 + 136. Scoring runs two models of each kind. An update takes a forward pass and a
    backward pass, which counts twice.
    """
    texts = [TokenSequence((1, 1, 1), (2, 2)), TokenSequence((1,), (2, 2))]
    full = TokensRead(score=8, update=2 * 8, num_epochs=2)
    assert SIZES.work(texts, full, trains_policy=True) == {
        "rollout": Work(344, 4),
        "score": Work(2 * 344 + 2 * 264, 8),
        "update": Work(3 * 2 * (344 + 264), 2 * 8),
    }
    assert SIZES.work(texts, TokensRead(8, 8, 1), trains_policy=False)["update"] == Work(3 * 264, 8)
    # an update that reuses scoring's pass of the policy saves one pass
    reused = SIZES.work(texts, replace(full, reused=True), trains_policy=True)["update"]
    assert reused == Work(3 * 2 * (344 + 264) - 344, 2 * 8)
    # a token that is read once instead of twice saves its matrix products, but no attention
    packed = SIZES.work(texts, TokensRead(score=7, update=7, num_epochs=1), trains_policy=True)
    assert packed["score"] == Work(2 * (344 - 20) + 2 * (264 - 16), 7)
    assert packed["update"] == Work(3 * (344 - 20 + 264 - 16), 7)


def test_the_value_warmup_counts_no_policy_update_as_work(one_rank):
    trainer = trainer_of(config_of(value_warmup_steps=1))
    rollout = batch_of([2, 3]).rollout
    assert trainer._work(rollout) == {}  # where nobody has measured the models
    trainer.monitors = Monitors(sizes=SIZES)
    for step, trains in ((0, False), (1, True)):
        trainer.state, trainer._read = PPOState(0.1, step), TokensRead(9, 18, 2)
        assert trainer._work(rollout) == SIZES.work(rollout.sequences, TokensRead(9, 18, 2), trains)


def test_the_work_of_a_reward_step_by_hand(one_rank):
    """Answers of 3, 4 | 3, 4, 5 tokens: 19 in total; the sum of squares is 75."""
    trainer, _ = reward_trainer([PAIR, TRIPLE])
    assert trainer._work() == {}
    trainer.size = SIZES.scorer
    trainer.update()
    assert trainer._work() == {"update": Work(3 * (2 * 8 * 19 + 2 * 2 * 75), 19)}


def test_the_targets_of_some_rows_keep_their_names(one_rank):
    batch = batch_of([2, 3])
    rollout = replace(
        batch.rollout,
        logprobs=torch.full((2, 3), 1.0),
        ref_logprobs=torch.full((2, 3), 2.0),
        values=torch.full((2, 3), 3.0),
    )
    part = PPOBatch(
        rollout, torch.zeros(2, 3), torch.full((2, 3), 4.0), torch.tensor([[5.0, 6.0, 7.0], [8.0, 9.0, 10.0]])
    )
    mask = torch.tensor([[True, False]])
    rows = part.rows([1], mask, CPU)
    assert rows.mask is mask
    found = (rows.logprobs, rows.ref_logprobs, rows.values, rows.advantages, rows.returns)
    assert [tensor.tolist() for tensor in found] == [[[1.0] * 2], [[2.0] * 2], [[3.0] * 2], [[4.0] * 2], [[8.0, 9.0]]]


def test_the_summary_reads_no_padding():
    """Two tokens and one; k1 is 1, 1 and 4; the padding holds junk in every tensor."""
    batch = batch_of([2, 1])
    rollout = replace(
        batch.rollout,
        logprobs=torch.tensor([[1.0, 1.0], [1.0, JUNK]]),
        ref_logprobs=torch.tensor([[0.0, 0.0], [-3.0, -JUNK]]),
        values=torch.tensor([[1.0, 2.0], [3.0, JUNK]]),
        entropy=torch.tensor([[0.5, 1.0], [3.0, JUNK]]),
        scores=torch.tensor([1.0, 3.0]),
        ended=torch.tensor([True, False]),
    )
    got = batch_metrics(
        PPOBatch(rollout, torch.tensor([[1.0, 2.0], [4.0, 0.0]]), rollout.values, rollout.values * 2), PPOConfig()
    )
    assert got == pytest.approx(
        {
            "score": 2.0,
            "score_std": 1.0,
            "kl": 3.0,
            "kl_per_token": 2.0,
            "reward": 3.5,
            "return": 4.0,
            "value": 2.0,
            "advantage_std": (2 / 3) ** 0.5,  # of 1, 2, 3
            "entropy": 1.5,
            "response_length": 1.5,
            "eos_rate": 0.5,
            "repetition": 0.0,
        }
    )


@pytest.mark.parametrize(
    ("logprobs", "warned"),
    [
        ([[-5.0, 4.0]] * 3, 1),  # -1 nat per response, without spread; the tokens differ by far more
        ([[-1.0, JUNK]] * 3, 1),
        ([[1.0, -JUNK]] * 3, 0),
        ([[-9.0, 0.0], [7.0, 0.0], [-9.0, 0.0]], 0),  # -11 / 3, with a standard error of 16 / 3
    ],
)
def test_the_kl_is_judged_response_by_response_without_its_padding(logprobs, warned, monkeypatch):
    """The reference's logprobs are 0. Responses with junk at the second index have one token."""
    batch = batch_of([1 if abs(row[1]) == JUNK else 2 for row in logprobs])
    mask = torch.tensor([[True, abs(row[1]) != JUNK] for row in logprobs])
    rollout = replace(
        batch.rollout, logprobs=torch.tensor(logprobs), ref_logprobs=torch.zeros(3, 2), response_mask=mask
    )
    record = Record()
    monkeypatch.setattr(ppo, "_ENOUGH_RESPONSES", 6)
    trainer = SimpleNamespace(report=record, _recent_kl=deque())
    PPOTrainer._warn_of_negative_kl(trainer, rollout)
    assert record.warnings == []  # three are too few
    PPOTrainer._warn_of_negative_kl(trainer, rollout)
    assert len(record.warnings) == warned


def test_a_missing_eos_penalty_of_zero_that_is_subtracted_leaves_the_scores_alone():
    rollout = replace(batch_of([1, 1]).rollout, scores=torch.tensor([1.0, 2.0]), ended=torch.tensor([False, True]))
    assert shaped_scores(rollout, PPOConfig()).tolist() == [1.0, 2.0]


# the reward model: an answer's score is its last id; the head reads (last id, number of tokens - 1)


class LastId:
    def __init__(self):
        self.scale = torch.ones((), requires_grad=True)
        self.updates, self.widths = [], []

    def __call__(self, input_ids, packing):
        self.widths.append(tuple(input_ids.shape))
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        hidden = torch.stack([input_ids.float(), positions.float()], dim=2)
        return self.scale * input_ids.float(), hidden

    @contextmanager
    def gathered(self, enabled):
        yield self

    def backward(self, loss):
        loss.backward()

    def step(self, update):
        self.updates.append(update)
        return StepResult(0.5, True, 0.25)


def ranking(*last, prompt=2, longer_wins=0.5, **more):
    """Answers that end with these ids; each is one token longer than the previous one."""
    answers = tuple(TokenSequence((1,) * prompt, (*(9,) * place, id)) for place, id in enumerate(last))
    return Ranking(answers, longer_wins, "", **more)


def reward_trainer(rows=(), eval_rows=(), **train):
    options = {"batch_size": 2, "micro_batch_size": 2, **train}
    config = TrainRMConfig(
        run=RunConfig(name="x", seed=7),
        train=RewardConfig(**options),
        checkpoint=CheckpointConfig(every_steps=0),
    )
    record = Record()
    return RewardTrainer(config, LastId(), RankingData(list(rows), list(eval_rows), 0), record, record), record


def softplus(x):
    return math.log1p(math.exp(x))


PAIR, TRIPLE = ranking(3, 1, longer_wins=1.0), ranking(2, 5, 2, longer_wins=0.25)


def test_the_steps_of_a_run():
    """Two epochs of ten rows in batches of four take five steps; of eleven rows, six."""
    config = TrainRMConfig(run=RunConfig(name="x"), train=RewardConfig(num_epochs=2, batch_size=4))
    assert num_steps(config, 10) == 5
    assert num_steps(config, 11) == 6
    assert num_steps(replace(config, train=RewardConfig(num_epochs=2, batch_size=4, num_steps=3)), 10) == 3


def test_the_pairs_of_two_and_of_three_ranked_answers():
    """Answers 0 and 1, then 2, 3 and 4 with three pairs of weight 1/3, then 5 and 6."""
    rows = [ranking(3, 1, margin=0.5), ranking(2, 5, 2, confidence=0.75), ranking(1, 2)]
    pairs = Pairs.of(rows, 0.1, CPU)
    assert pairs.better.tolist() == [0, 2, 2, 3, 5]
    assert pairs.worse.tolist() == [1, 3, 4, 4, 6]
    assert_close(pairs.weight, torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3, 1.0]))
    assert pairs.margin.tolist() == [0.5, 0.0, 0.0, 0.0, 0.0]
    assert_close(pairs.confidence, torch.tensor([0.9, 0.75, 0.75, 0.75, 0.9]))


def test_the_sums_of_pairs_by_hand():
    """Scores 3, 1 | 2, 5, 2: differences 2 | -3, 0, 3; sums 4 | 7, 4, 7."""
    pairs, scores = Pairs.of([PAIR, TRIPLE], 0.0, CPU), torch.tensor([3.0, 1.0, 2.0, 5.0, 2.0])
    assert pairs.margins(scores).tolist() == [2.0, -3.0, 0.0, 3.0]
    assert pairs.loss(scores).item() == pytest.approx(softplus(-2) + (softplus(3) + LOG2 + softplus(-3)) / 3, rel=1e-6)
    assert pairs.centering(scores).item() == pytest.approx(16 + (49 + 16 + 49) / 3, rel=1e-6)
    assert pairs.correct(scores).item() == pytest.approx(1 + (0 + 0.5 + 1) / 3, rel=1e-6)


@pytest.mark.parametrize("centering_coef", [0.0, 0.25])
def test_an_update_of_the_reward_model_by_hand(centering_coef, one_rank):
    """Means over two rankings of the sums above; with a prompt of 2, answers have 3, 4 | 3, 4, 5
    tokens. d(loss)/d(scale) is the sum of -weight * x * sigmoid(-x) over the differences x, divided
    by 2. The derivative of the centering term, quadratic in the scores, is twice the term.
    """
    trainer, _ = reward_trainer([PAIR, TRIPLE], centering_coef=centering_coef)
    metrics, num_tokens = trainer.update()
    assert num_tokens == 3 + 4 + 3 + 4 + 5
    assert trainer.model.updates == [0]
    expected = {
        "loss": (softplus(-2) + (softplus(3) + LOG2 + softplus(-3)) / 3) / 2,
        "accuracy": 0.75,
        "margin": 1.0,
        "grad_norm": 0.5,
        "lr": 0.25,
        "skipped_updates": 1.0,
    }
    if centering_coef:
        expected["centering"] = 27.0
    assert metrics == pytest.approx(expected, rel=1e-6)
    slope = sum(-w * x / (1 + math.exp(x)) for w, x in ((1, 2), (1 / 3, -3), (1 / 3, 3))) / 2
    assert trainer.model.scale.grad.item() == pytest.approx(slope + centering_coef * 54, rel=1e-5)


def test_weights_of_rows_are_divided_by_their_mean(one_rank):
    """Weights 3 and 1 count as 1.5 and 0.5 in loss and centering term, not in accuracy and margin."""
    rows = [replace(PAIR, weight=3.0), TRIPLE]
    trainer, _ = reward_trainer(rows, rows, centering_coef=0.25)
    metrics, _ = trainer.update()
    triple = (softplus(3) + LOG2 + softplus(-3)) / 3
    assert metrics["loss"] == pytest.approx((1.5 * softplus(-2) + 0.5 * triple) / 2, rel=1e-6)
    assert metrics["centering"] == pytest.approx((1.5 * 16 + 0.5 * 38) / 2, rel=1e-6)
    assert (metrics["accuracy"], metrics["margin"]) == (0.75, 1.0)
    heavy, _ = reward_trainer([replace(row, weight=9.0) for row in rows], rows)
    assert heavy.update()[0]["loss"] == pytest.approx((softplus(-2) + triple) / 2, rel=1e-6)
    found = heavy.evaluate()
    assert found["eval/loss"] == pytest.approx((1.5 * softplus(-2) + 0.5 * triple) / 2, rel=1e-6)
    assert found["eval/accuracy"] == pytest.approx(0.75)


def test_rows_without_any_weight_are_refused():
    with pytest.raises(InputError) as caught:
        reward_trainer([replace(PAIR, weight=0.0)] * 2)
    assert str(caught.value) == "data.weight_column: every training row has weight 0; at least one must be above 0"


def test_tied_answers_make_no_pair():
    """Ranks 0, 1, 1 of answers with scores 2, 5, 2: differences -3 and 0, with weights of a half."""
    pairs, scores = Pairs.of([replace(TRIPLE, ranks=(0, 1, 1))], 0.0, CPU), torch.tensor([2.0, 5.0, 2.0])
    assert pairs.margins(scores).tolist() == [-3.0, 0.0]
    assert pairs.loss(scores).item() == pytest.approx((softplus(3) + LOG2) / 2, rel=1e-6)


def test_every_micro_batch_of_the_reward_model_counts(one_rank):
    trainer, _ = reward_trainer([PAIR, TRIPLE], micro_batch_size=1)
    metrics, num_tokens = trainer.update()
    assert (metrics["accuracy"], metrics["margin"], num_tokens) == (pytest.approx(0.75), pytest.approx(1.0), 19)
    assert trainer.model.widths == [(2, 4), (3, 5)]


def test_a_row_that_keeps_ranks_in_step_has_no_weight(one_rank):
    trainer, _ = reward_trainer(centering_coef=1.0)
    assert trainer._accumulate([PAIR], False).tolist() == [0.0] * 5
    assert trainer.model.scale.grad.item() == 0.0
    assert trainer._accumulate([PAIR], True).tolist() == pytest.approx([softplus(-2), 16.0, 1.0, 2.0, 7.0])


def test_the_reward_models_micro_batches_count_prompt_and_answer(one_rank, monkeypatch):
    """Two pairs whose longer answers have 4 tokens, prompt included: 2 * 2 * 4 = 16 tokens."""
    for tokens, expected in ((16, [([PAIR, PAIR], True)]), (15, [([PAIR], True), ([PAIR], True)])):
        assert reward_trainer(micro_batch_tokens=tokens)[0]._micro_batches([PAIR, PAIR]) == expected
    monkeypatch.setattr(distributed, "gather_all", lambda number: [number, 2])
    assert reward_trainer(micro_batch_tokens=99)[0]._micro_batches([PAIR]) == [([PAIR], True), ([PAIR], False)]
    assert reward_trainer()[0]._micro_batches([PAIR]) == [([PAIR], True)]


def test_the_reward_models_micro_batches_of_packed_answers_count_a_shared_prompt_once(one_rank):
    """The same pair twice takes the room of one; the two answers of a pair share only the prompt."""
    num_tokens = len({answer.ids[: end + 1] for answer in PAIR.answers for end in range(len(answer))})
    trainer, _ = reward_trainer(micro_batch_tokens=num_tokens)
    assert len(trainer._micro_batches([PAIR, PAIR])) == 2
    trainer.data = replace(trainer.data, packed=True)
    assert trainer._micro_batches([PAIR, PAIR]) == [([PAIR, PAIR], True)]
    trainer._forward([PAIR, PAIR])
    assert trainer._num_read == num_tokens


def test_two_updates_take_every_row_once(one_rank):
    rows = [ranking(20 + n, 1, prompt=n) for n in range(4)]
    trainer, _ = reward_trainer(rows)
    tokens = []
    for step in range(2):
        trainer.step = step
        tokens.append(trainer.update()[1])
    widths = [sum(row.num_tokens * 2 - 1 for row in (rows[i] for i in batch_indices(4, 2, s, seed=7))) for s in (0, 1)]
    assert tokens == widths
    assert sum(tokens) == sum(2 * n + 3 for n in range(4))


@pytest.mark.parametrize("micro", [1, 16])
def test_the_evaluation_by_hand(micro, one_rank):
    """Scores as above, by the model's own head; the head (0, 1) reads the number of the last token:
    2, 3 | 2, 3, 4.
    """
    trainer, record = reward_trainer(eval_rows=[TRIPLE, PAIR], eval_micro_batch_size=micro)
    figures = {
        "eval/accuracy": 0.75,
        "eval/longer_wins_accuracy": 0.625,
        "eval/margin": 1.0,
        "eval/loss": (softplus(-2) + (softplus(3) + LOG2 + softplus(-3)) / 3) / 2,
    }
    assert trainer.evaluate() == pytest.approx(figures, rel=1e-6)
    by_length = trainer.evaluate(torch.tensor([[0.0, 1.0]]))
    assert by_length["eval/accuracy"] == 0.0
    assert by_length["eval/margin"] == pytest.approx((-1 - 4 / 3) / 2, rel=1e-6)
    assert record.metrics == [pytest.approx(figures, rel=1e-6), by_length]


def test_without_held_out_rows_there_is_no_evaluation(one_rank):
    trainer, record = reward_trainer()
    assert trainer.evaluate() == {}
    assert record.metrics == []


def test_the_calibration_by_hand(one_rank):
    """Ids 8, 4 | 4, 8 are read as (8, 2), (4, 3) | (4, 2), (8, 3): mean (6, 2.5), deviations 2 and
    1/2, uncorrelated.

    In two dimensions the new head can only be orthogonal to the mean: along (5, -12), with the
    scores 16, -16 | -4, 4, whose variance is 136. The pairs' differences, 4 and -4, become 32 and
    -8.
    """
    trainer, record = reward_trainer([ranking(8, 4), ranking(4, 8)])
    head, figures = trainer.calibrate(torch.tensor([[1.0, 0.0]]))
    assert_close(head, torch.tensor([[5.0, -12.0]]) / math.sqrt(136), atol=1e-5, rtol=0)
    assert figures == {
        "calibration/mean": pytest.approx(0.0, abs=1e-6),
        "calibration/std": pytest.approx(1.0, abs=1e-6),
        "calibration/same_order": 1.0,
    }
    assert record.metrics == [figures]


def test_the_calibration_is_measured_on_the_rounded_head(one_rank):
    """Prompts one token longer: mean (6, 3.5), so that the head is along (7, -12), of variance 49 *
    4 + 144 / 4 = 232.

    (7, -12) / sqrt(232) is (235 / 512, -202 / 256) in bfloat16: its mean is 6 * 235 / 512 - 3.5 *
    202 / 256 = -1 / 128.
    """
    trainer, _ = reward_trainer([ranking(8, 4, prompt=3), ranking(4, 8, prompt=3)])
    head, figures = trainer.calibrate(torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16))
    assert head.dtype is torch.bfloat16
    assert head.tolist() == [[235 / 512, -202 / 256]]
    assert figures["calibration/mean"] == -1 / 128
    assert figures["calibration/std"] == pytest.approx(math.sqrt(4 * (235 / 512) ** 2 + (202 / 256) ** 2 / 4), rel=1e-6)


def test_a_calibration_that_reverses_a_pair_reports_it(one_rank):
    """As above, but the weight reads lengths: the new head is along (-5, 12), and -1, -1 become
    -32, 8.
    """
    trainer, _ = reward_trainer([ranking(8, 4), ranking(4, 8)])
    _, figures = trainer.calibrate(torch.tensor([[0.0, 1.0]]))
    assert figures["calibration/same_order"] == 0.5


def test_the_calibration_reads_num_calibration_pairs_rows(one_rank):
    rows = [ranking(8, 4), ranking(4, 8), ranking(5, 6), ranking(6, 5)]
    trainer, _ = reward_trainer(rows, num_calibration_pairs=3, eval_micro_batch_size=16)
    trainer.calibrate(torch.tensor([[1.0, 0.0]]))
    assert trainer.model.widths == [(6, 4)]


def test_pairs_are_on_the_ranks_device_by_default(one_rank, monkeypatch):
    monkeypatch.setattr(distributed, "device", lambda: torch.device("meta"))
    trainer, _ = reward_trainer()
    assert trainer._pairs([PAIR]).weight.device.type == "meta"
    assert trainer._pairs([PAIR], CPU).weight.device.type == "cpu"


def sound_rollout(num_rows):
    """Rows of two tokens whose figures are all finite."""
    sequence = TokenSequence((1,), (2, 3))
    per_token = dict.fromkeys(("logprobs", "ref_logprobs", "values", "entropy"), torch.zeros(2))
    rows = [Episode(0, sequence, ended=True, source_scores=torch.zeros(1), **per_token) for _ in range(num_rows)]
    return Rollout.of(rows, ONE_SOURCE)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "place", "what"),
    [
        ("scores", (2,), "score"),
        ("logprobs", (2, 1), "logprob"),
        ("ref_logprobs", (2, 0), "ref_logprob"),
        ("values", (2, 1), "value"),
    ],
)
def test_what_is_not_finite_is_named_by_its_row(bad, name, place, what):
    rollout = sound_rollout(4)
    assert rollout.not_finite() == {}
    getattr(rollout, name)[place] = bad
    assert rollout.not_finite() == {2: what}
    rollout.scores[0] = bad
    rollout.scores[2] = bad
    assert rollout.not_finite() == {0: "score", 2: "score"}


def test_held_out_pairs_are_recorded_with_their_scores():
    """Three answers make three pairs of weight 1/3; the second column is what training fits."""
    prompt = json.dumps([{"role": "user", "content": "why?"}])
    row = Ranking(tuple(TokenSequence((1,), (n,) * n) for n in (3, 1, 2)), 0.5, prompt, category="refund")
    scores = torch.tensor([[1.0, 5.0], [0.5, 3.0], [-1.0, 4.0]])
    records = pair_records([row], scores, lambda ids: str(list(ids)))
    assert [(one["score_chosen"], one["score_rejected"], one["log_odds"]) for one in records] == [
        (1.0, 0.5, 2.0),
        (1.0, -1.0, 1.0),
        (0.5, -1.0, -1.0),
    ]
    assert records[1] == {
        "prompt": "why?",
        "chosen": "[3, 3, 3]",
        "rejected": "[2, 2]",
        "score_chosen": 1.0,
        "score_rejected": -1.0,
        "log_odds": 1.0,
        "tokens_chosen": 3,
        "tokens_rejected": 2,
        "weight": pytest.approx(1 / 3),
        "category": "refund",
    }
    assert [one["prompt"] for one in pair_records([row, row], torch.cat([scores, scores]), str)] == ["why?"] * 6


@pytest.mark.parametrize(("best", "steps"), [(None, [1]), ("loss", [1]), ("eval/loss", [1, 2])])
def test_the_last_step_is_evaluated_if_it_may_be_the_best_checkpoint(best, steps, one_rank):
    """Otherwise the evaluation of the exported model, which follows, is enough."""
    trainer, record = reward_trainer([PAIR, PAIR], [PAIR], num_steps=2, eval_every_steps=1)
    trainer.config = replace(trainer.config, checkpoint=replace(trainer.config.checkpoint, best_metric=best))
    seen = []
    record.after_step = lambda state, metrics: seen.append((state["step"], "eval/loss" in metrics))
    trainer.fit()
    assert seen == [(step, step in steps) for step in (1, 2)]
