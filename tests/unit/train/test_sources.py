"""Several reward sources in a PPO run: scored, normalised, saved, skipped, failed."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from rlhf_cli.algo.normalise import Moments
from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.config.reward_options import Normalise, OnFailure, RewardSourceConfig
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.sampler import batch_indices
from rlhf_cli.data.splits import Splits
from rlhf_cli.data.token_batches import TokenSequence
from rlhf_cli.rewards.ensemble import RewardEnsemble
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.run.check_ppo import Tokenizers, check_ppo
from rlhf_cli.run.checks import FLOAT32
from rlhf_cli.run.reward_sources import exchange_maker
from rlhf_cli.train.ppo import PPOState
from tests.oracle.cases import PROMPTS, TOKENIZER, Record, ppo_config, ppo_models, ppo_trainer
from tests.unit.run.test_checks import DATA

RM = RewardSourceConfig(name="rm")


class Lengths:
    """A reward function: the length of a response. It fails from the call `fails_at` on."""

    def __init__(self, fails_at=math.inf, wobbles=0.0):
        self.asked, self.fails_at, self.wobbles = [], fails_at, wobbles

    def score(self, exchanges):
        self.asked.append(list(exchanges))
        if len(self.asked) >= self.fails_at:
            raise RewardError(f"reward lengths: call {len(self.asked)}: gone")
        return [len(one.response) + self.wobbles * len(self.asked) for one in exchanges]

    def close(self):
        pass


class StepHooks(Record):
    def give_up(self, state, error):
        self.saved = json.loads(json.dumps(state))  # as a checkpoint keeps it
        raise error


def exchange(prompt, sequence):
    return Exchange([{"role": "user", "content": prompt.prompt_key}], "x" * len(sequence.response_ids), prompt.columns)


def trainer_of(lengths, record=None, source=None, **options):
    """One source is the reward model, the other one counts tokens."""
    counts = source or RewardSourceConfig(name="lengths", function="m:f", weight=0.5)
    config = replace(ppo_config("base", **options), reward=[RM, counts])
    trainer = ppo_trainer(config, ppo_models(), "simple", record or StepHooks())
    old = trainer.models.rewards
    rewards = RewardEnsemble([RM, counts], exchange, old.reward_model, {}, {"lengths": lengths})
    trainer.passes.models = replace(trainer.models, rewards=rewards)
    return trainer


def test_a_score_is_the_weighted_sum_and_every_source_is_logged(one_rank):
    lengths, record = Lengths(), StepHooks()
    trainer = trainer_of(lengths, record)
    assert list(trainer.models.rewards.engines) == ["reward_model"]
    rollout = trainer.score(trainer.collect())
    counted = torch.tensor([float(len(one.response_ids)) for one in rollout.sequences])
    assert torch.equal(rollout.source_scores[:, 1], counted)
    assert torch.allclose(rollout.scores, rollout.source_scores[:, 0] + 0.5 * counted)
    trainer.fit()
    first = record.metrics[0]
    assert first["reward/lengths"] == pytest.approx(float(counted.mean()))
    assert first["reward_part/lengths"] == pytest.approx(float(counted.mean()) / 2)
    assert first["score"] == pytest.approx(first["reward_part/rm"] + first["reward_part/lengths"], abs=1e-6)


def test_sources_score_the_prompts_of_the_step(one_rank, monkeypatch):
    lengths = Lengths()
    trainer = trainer_of(lengths)
    trainer.data.prompts[:] = [replace(one, columns={"n": one.prompt_key}) for one in PROMPTS]
    trainer.fit()
    assert len(lengths.asked) == 2
    for step, asked in enumerate(lengths.asked):
        indices = batch_indices(len(PROMPTS), trainer.config.ppo.batch_size, step, trainer.config.run.seed)
        wanted = [trainer.data.prompts[index].prompt_key for index in indices]
        assert [one.prompt for one in asked] == wanted
        assert [one.columns for one in asked] == [{"n": key} for key in wanted]


def test_without_a_list_of_sources_no_text_is_rendered_and_no_source_is_logged(one_rank):
    record = Record()
    ppo_trainer(ppo_config("base"), ppo_models(), "simple", record).fit()
    assert not any(name.startswith("reward") and "/" in name for name in record.metrics[0])


def test_running_moments_take_in_every_response_and_are_what_a_checkpoint_keeps(one_rank):
    lengths, record = Lengths(), StepHooks()
    source = RewardSourceConfig(name="lengths", function="m:f", normalise=Normalise.running)
    trainer = trainer_of(lengths, record, source)
    trainer.fit()
    counted = [float(len(one.response)) for asked in lengths.asked for one in asked]
    mean = sum(counted) / len(counted)
    moments = trainer.state.moments["lengths"]
    assert moments.count == len(counted) == 16
    assert moments.mean == pytest.approx(mean)
    assert moments.squares == pytest.approx(sum((one - mean) ** 2 for one in counted))
    assert PPOState.of(json.loads(json.dumps(asdict(trainer.state)))) == trainer.state


def test_scores_are_normalised_by_moments_that_include_the_step(one_rank):
    """In the first step they have mean 0 and deviation 1, so the mean of the sum is that of the
    reward model.
    """
    source = RewardSourceConfig(name="lengths", function="m:f", normalise=Normalise.running)
    trainer = trainer_of(Lengths(), source=source)
    raw = trainer.score(trainer.collect())
    rollout = trainer.normalise(raw)
    part = rollout.scores - rollout.source_scores[:, 0]
    assert float(part.mean()) == pytest.approx(0, abs=1e-6)
    assert float(part.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert trainer.state.moments["lengths"].count == 8


def test_a_failure_saves_the_state_after_the_last_completed_step(one_rank):
    record = StepHooks()
    source = RewardSourceConfig(name="lengths", function="m:f", normalise=Normalise.fixed)
    trainer = trainer_of(Lengths(fails_at=2), record, source)
    with pytest.raises(RewardError, match="call 2: gone"):
        trainer.fit()
    assert record.saved["step"] == 1
    assert record.saved["moments"]["lengths"]["count"] == 8
    assert len(record.metrics) == 1


def test_a_run_resumed_after_a_failure_gives_the_same_metrics(one_rank):
    source = RewardSourceConfig(name="lengths", function="m:f", normalise=Normalise.running)
    whole, halves = StepHooks(), StepHooks()
    trainer_of(Lengths(), whole, source).fit()
    trainer = trainer_of(Lengths(fails_at=2), halves, source)
    with pytest.raises(RewardError):
        trainer.fit()
    trainer.models.rewards.external["lengths"].fails_at = math.inf
    trainer.state = PPOState.of(halves.saved)
    trainer.fit()
    assert halves.metrics == whole.metrics


def test_a_skipped_step_trains_nothing_and_the_next_one_continues(one_rank):
    lengths, record = Lengths(fails_at=1), StepHooks()
    source = RewardSourceConfig(name="lengths", function="m:f", on_failure=OnFailure.skip, normalise=Normalise.running)
    trainer = trainer_of(lengths, record, source)
    before = copy.deepcopy(trainer.models.policy.full_state_dict())

    def recovers(step, metrics):
        lengths.fails_at = math.inf
        return 1.0

    record.check = recovers
    weights = []
    record.after_step = lambda state, metrics: weights.append(copy.deepcopy(trainer.models.policy.full_state_dict()))
    trainer.fit()
    assert record.metrics[0] == {"failed_rewards": 1.0}  # the guard of skipped updates has nothing to count
    assert "failed_rewards" not in record.metrics[1]
    assert record.warnings == ["step 1 is skipped: reward lengths: call 1: gone"]
    assert all(torch.equal(weights[0][name], before[name]) for name in before)
    assert not all(torch.equal(weights[1][name], before[name]) for name in before)
    assert (trainer.state.failures, trainer.state.moments["lengths"].count) == (0, 8)


def test_too_many_skipped_steps_in_a_row_end_the_run(one_rank):
    record = StepHooks()
    source = RewardSourceConfig(name="lengths", function="m:f", on_failure=OnFailure.skip, max_failures=2)
    trainer = trainer_of(Lengths(fails_at=1), record, source)
    with pytest.raises(RewardError, match="call 2: gone; 2 consecutive steps were skipped"):
        trainer.fit()
    assert (record.saved["step"], record.saved["failures"]) == (1, 0)


def checked(trainer, source=None):
    texts = Tokenizers(TOKENIZER, TOKENIZER, DATA)
    prompts = [Prompt(one.text, one.ids, json.dumps([{"role": "user", "content": "?"}])) for one in PROMPTS]
    return {check.name: check.status for check in check_ppo(trainer, prompts, texts, FLOAT32)}


def test_the_checks_score_twice(one_rank):
    assert checked(trainer_of(Lengths()))["lengths gives the same scores twice"] == "ok"
    assert checked(trainer_of(Lengths(wobbles=50.0)))["lengths gives the same scores twice"] == "FAIL"


def test_a_source_that_is_declared_random_is_not_compared(one_rank):
    source = RewardSourceConfig(name="lengths", function="m:f", random=True)
    found = checked(trainer_of(Lengths(wobbles=50.0), source=source))
    assert "lengths gives the same scores twice" not in found
    assert found["a second pass gives the same numbers"] == "ok"


@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_source_that_fails_in_the_checks_is_bad_input(on_failure, one_rank):
    source = RewardSourceConfig(name="lengths", function="m:f", on_failure=on_failure)
    with pytest.raises(InputError, match=r"^reward lengths: call 1: gone$"):
        checked(trainer_of(Lengths(fails_at=1), source=source))


class Renderer:
    def with_system(self, messages):
        return [{"role": "system", "content": "be kind"}, *messages]

    def response_text(self, ids):
        return str(list(ids))


def prompt_of(text, **columns):
    return Prompt(text, (1,), text, ({"role": "user", "content": text},), columns)


def test_a_source_is_tested_on_both_splits_before_models_are_loaded(one_rank):
    sides = Splits([prompt_of("hi", a=1), prompt_of("ho", b=2)], [prompt_of("bye", a=3)], [])
    lengths = Lengths()
    texts = exchange_maker(Renderer(), sides, {"lengths": lengths})
    [[first], [second]] = lengths.asked
    assert [one["content"] for one in first.messages] == ["be kind", "hi"]
    assert (first.columns, bool(first.response)) == ({"a": 1, "b": None}, True)
    assert (second.prompt, second.columns) == ("bye", {"a": 3})
    exchange = texts(prompt_of("bye", a=3), TokenSequence((1,), (4, 5)))
    assert (exchange.response, exchange.columns) == ("[4, 5]", {"a": 3, "b": None})


def test_a_source_that_fails_on_the_held_out_split_is_bad_input(one_rank):
    sides = Splits([prompt_of("hi")], [prompt_of("bye")], [])
    with pytest.raises(InputError, match="call 2: gone"):
        exchange_maker(Renderer(), sides, {"lengths": Lengths(fails_at=2)})


def test_without_functions_and_services_columns_are_not_read(one_rank):
    assert exchange_maker(Renderer(), Splits([prompt_of("hi", a=1)], [], []), {}).columns == {}


def test_a_restored_state_has_its_moments():
    saved = {"kl_coef": 0.1, "step": 3, "moments": {"a": {"count": 2, "mean": 1.0, "squares": 0.5}}, "failures": 1}
    assert PPOState.of(saved) == PPOState(0.1, 3, {"a": Moments(2, 1.0, 0.5)}, 1)
