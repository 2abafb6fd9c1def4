"""Evaluation on held-out prompts before, during and after training."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlhf_cli.config.errors import RewardError
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.config.sections import CheckpointConfig, EvalConfig, RolloutConfig, RunConfig
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.token_batches import EndTokens, TokenSequence
from rlhf_cli.engine import distributed
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.report.run_dir import RunDir
from rlhf_cli.rewards.ensemble import RewardEnsemble
from rlhf_cli.run.evaluation import Evaluator, HeldOutResponse, Scorers, compare, metrics, records

PROMPTS = [Prompt(f"prompt {n}", (10 + n,), str(n)) for n in range(5)]
EOS = 9


class Sampler:
    """Responds to a prompt with its first id, and with EOS too when it samples."""

    def __init__(self):
        self.asked = []

    def sample(self, prompts, keys, greedy=False):
        self.asked.append((prompts, keys, greedy))
        return [TokenSequence(prompt, (prompt[0],) if greedy else (prompt[0], EOS)) for prompt in prompts]


class RewardModel:
    """The score of a response is its first id; it needs gathered weights."""

    def __init__(self):
        self.engine, self.held, self.parts = self, None, []

    @contextmanager
    def gathered(self, enabled):
        self.held = enabled
        yield
        self.held = None

    def score(self, sequences):
        assert self.held is not None
        self.parts.append(len(sequences))
        return torch.tensor([float(sequence.response_ids[0]) for sequence in sequences])


def make(prompts=PROMPTS, gold=None, kls=(0.25, -0.5), report=None, every_steps=0, **rollout):
    config = TrainPPOConfig(
        run=RunConfig(name="x", seed=7),
        rollout=RolloutConfig(micro_batch_size=2, **rollout),
        checkpoint=CheckpointConfig(every_steps=0),
        eval=EvalConfig(every_steps=every_steps),
    )
    renderer = SimpleNamespace(
        response_text=lambda ids: f"ids {list(ids)}", pieces=lambda ids, kls: ([str(one) for one in ids], kls)
    )
    sampler, reward_model = Sampler(), RewardModel()
    rewards = RewardEnsemble([RewardSourceConfig(name="reward_model")], None, reward_model, {}, {})
    scorers = Scorers(rewards, gold, lambda sequences: [torch.tensor(kls[: len(s.response_ids)]) for s in sequences])
    ends = EndTokens(frozenset({EOS}), 0)
    return Evaluator(config, prompts, sampler, ends, scorers, renderer, report), sampler, reward_model


def test_every_prompt_gets_a_greedy_and_a_sampled_response_in_order(one_rank):
    made, sampler, reward_model = make()
    answers = made.respond("before", 0)
    assert [(one.mode, one.prompt, one.score) for one in answers] == [
        (mode, f"prompt {n}", 10.0 + n) for mode in ("greedy", "sampled") for n in range(5)
    ]
    assert answers[0] == HeldOutResponse("before", 0, "greedy", "prompt 0", "ids [10]", 10.0, 1, ended=False)
    assert answers[9] == HeldOutResponse("before", 0, "sampled", "prompt 4", "ids [14, 9]", 14.0, 2, ended=True)
    assert [asked[2] for asked in sampler.asked] == [True, False]
    assert reward_model.parts == [2, 2, 1] * 2


def test_sampled_responses_draw_the_same_numbers_each_time(one_rank):
    made, sampler, _ = make()
    made.respond("before", 0)
    made.respond("after", 4)
    keys = [asked[1] for asked in sampler.asked]
    assert keys == [[f"7/held-out/{n}" for n in range(5)]] * 4


@pytest.mark.parametrize("gather", [True, False])
def test_the_reward_model_is_gathered_if_the_options_say_so(gather, one_rank):
    made, _, reward_model = make(gather=gather)
    held = []
    score = reward_model.score
    reward_model.score = lambda part: (held.append(reward_model.held), score(part))[1]
    made.respond("before", 0)
    assert held == [gather] * 6


def test_two_ranks_get_equal_shares_and_the_padding_is_dropped(monkeypatch):
    """Five prompts become six, the first one twice: rank 1 responds to 3, 4 and 0."""
    made, sampler, _ = make()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "gather_all", lambda mine: [[replace(one, score=0.0) for one in mine], mine])
    answers = made.respond("before", 0)
    assert sampler.asked[0][0] == [(13,), (14,), (10,)]
    assert [one.prompt for one in answers[:5]] == ["prompt 3", "prompt 4", "prompt 0", "prompt 3", "prompt 4"]


def test_without_prompts_nothing_is_sampled():
    made, sampler, _ = make(prompts=[])
    assert made.respond("before", 0) == []
    assert sampler.asked == []


def response(mode, score, num_tokens, ended):
    return HeldOutResponse("", 0, mode, "", "", score, num_tokens, ended)


def test_responses_are_compared_in_pairs():
    """Greedy scores 1, 2 become 2, 4: a mean difference of 1.5; nothing was sampled."""
    before = [response("greedy", 1.0, 3, True), response("greedy", 2.0, 5, False)]
    after = [response("greedy", 2.0, 1, True), response("greedy", 4.0, 2, True)]
    found = compare(before, after)
    assert found.keys() == {"greedy"}
    expected = {
        "num_prompts": 2,
        "score_before": 1.5,
        "score_after": 3.0,
        "difference_mean": 1.5,
        "win_rate": 1.0,
        "response_length_before": 4.0,
        "response_length_after": 1.5,
        "eos_rate_before": 0.5,
        "eos_rate_after": 1.0,
    }
    assert {name: found["greedy"][name] for name in expected} == expected
    assert 1.0 <= found["greedy"]["difference_low"] <= 1.5 <= found["greedy"]["difference_high"] <= 2.0


def test_responses_during_training_have_every_token_and_its_kl(one_rank):
    made, _, _ = make()
    answers = made.respond("during", 2)
    assert {(one.stage, one.step) for one in answers} == {("during", 2)}
    assert (answers[0].tokens, answers[0].kl) == (["10"], [0.25])
    assert (answers[9].tokens, answers[9].kl) == (["14", "9"], [0.25, -0.5])
    assert made.respond("before", 0)[0].kl == []


def test_the_gold_reward_model_scores_every_response_too(one_rank):
    gold = RewardModel()
    made, _, reward_model = make(gold=gold)
    answers = made.respond("before", 0)
    assert [one.gold_score for one in answers] == [one.score for one in answers]
    assert gold.parts == reward_model.parts == [2, 2, 1] * 2


def test_a_record_rounds_the_kl():
    made = replace(response("greedy", 1.0, 1, True), tokens=["a"], kl=[0.123456])
    [record] = records([made])
    assert (record["kl"], record["tokens"], record["mode"]) == ([0.1235], ["a"], "greedy")


def test_an_evaluation_counts_wins_over_the_responses_before_training():
    """Sampled: 2 > 1 and 3 == 3 win 1.5 of 2; Wilson's interval is 0.1979 to 0.9733 (z = 1.96).

    (0.75 + 3.8415 / 4) / (1 + 3.8415 / 2) = 0.5856; 1.96 / 2.9207 * sqrt(0.1875 / 2 + 3.8415 / 16)
    = 0.3877.
    """
    before = [response("sampled", 1.0, 3, True), response("sampled", 3.0, 5, False)]
    now = [
        replace(response("sampled", 2.0, 1, True), kl=[0.5, 0.25], gold_score=1.0),
        replace(response("sampled", 3.0, 2, False), kl=[-0.25], gold_score=0.0),
    ]
    before = [replace(one, gold_score=0.5) for one in before]
    found = metrics(before, now)
    assert found.pop("eval/win_rate_low") == pytest.approx(0.5856 - 0.3877, abs=1e-4)
    assert found.pop("eval/win_rate_high") == pytest.approx(0.5856 + 0.3877, abs=1e-4)
    assert {name: value for name, value in found.items() if not name.endswith(("_low", "_high"))} == {
        "eval/score": 2.5,
        "eval/win_rate": 0.75,
        "eval/response_length": 1.5,
        "eval/eos_rate": 0.5,
        "eval/gold_score": 0.5,
        "eval/gold_win_rate": 0.5,
        "eval/kl": 0.25,
    }


def test_greedy_responses_have_their_own_metrics_and_no_kl():
    row = [response("greedy", 1.0, 3, True)]
    assert set(metrics(row, row)) == {
        f"eval/greedy_{name}"
        for name in ("score", "win_rate", "win_rate_low", "win_rate_high", "response_length", "eos_rate")
    }


def held_out(run_dir, every_steps=2):
    report = Reporter(speaks=True)
    report.open(run_dir, 4, ())
    made, sampler, _ = make(report=report, every_steps=every_steps)
    return made, sampler


@pytest.fixture
def run_dir(tmp_path):
    return RunDir(RunConfig(name="a", output_dir=str(tmp_path)), "train-ppo", [], "", 1)


def logged_steps(run_dir):
    return (
        [(one["stage"], one["step"]) for one in run_dir.lines("samples.jsonl")][::10],
        [one["step"] for one in run_dir.lines("metrics.jsonl")],
    )


def test_a_run_logs_its_responses_before_during_and_after(run_dir, one_rank):
    """An evaluation at the last step is reused after training."""
    evaluator, sampler = held_out(run_dir)
    evaluator.before()
    evaluator.log_before(is_new=True)
    assert evaluator.during(2)["eval/win_rate"] == 0.5
    evaluator.during(4)
    after = evaluator.after(4)
    assert {one.stage for one in after} == {"after"}
    assert logged_steps(run_dir) == ([("before", 0), ("during", 2), ("during", 4), ("after", 4)], [0, 2, 4])
    assert len(sampler.asked) == 2 * 3
    assert all("time/evaluate" in one for one in list(run_dir.lines("metrics.jsonl"))[1:])


def test_without_evaluations_while_training_there_is_no_series(run_dir, one_rank):
    evaluator, _ = held_out(run_dir, every_steps=0)
    evaluator.before()
    evaluator.log_before(is_new=True)
    evaluator.after(4)
    assert logged_steps(run_dir) == ([("before", 0), ("after", 4)], [])


def test_a_resumed_run_logs_nothing_twice(run_dir, one_rank):
    """Neither does one that is resumed at its last step, whose evaluation is logged already."""
    first, _ = held_out(run_dir)
    first.before()
    first.log_before(is_new=True)
    first.during(4)
    again, sampler = held_out(run_dir)
    again.before()
    again.log_before(is_new=False)
    again.after(4)
    again.after(4)
    assert logged_steps(run_dir) == ([("before", 0), ("during", 4), ("after", 4)], [0, 4])
    assert len(sampler.asked) == 2 * 3


class Failing(RewardEnsemble):
    """A source whose failures are skipped, or not."""

    def __init__(self, skips):
        super().__init__([RewardSourceConfig(name="far", url="http://a")], None, None, {}, {})
        self.skips = skips

    def scores(self, prompts, sequences, map_micro_batches):
        error = RewardError("far: gone")
        if not self.skips:
            raise error
        self.failed = {"far": error}
        return torch.full((len(sequences), 1), float("nan"))


@pytest.mark.parametrize("skips", [True, False])
def test_an_evaluation_is_skipped_only_if_the_failed_source_allows_it(skips, one_rank):
    warnings = []
    evaluator, _, _ = make(report=SimpleNamespace(warn=warnings.append, evaluating=nullcontext))
    evaluator.scorers = replace(evaluator.scorers, rewards=Failing(skips))
    if not skips:
        for ask in (evaluator.during, evaluator.after):
            with pytest.raises(RewardError, match="far: gone"):
                ask(2)
        return
    assert (evaluator.during(2), evaluator.after(2)) == ({}, [])
    assert warnings == ["the evaluation after step 2 is skipped: far: gone"] * 2
    assert compare([response("greedy", 1.0, 3, True)], []) == {}


def test_a_failure_that_stops_is_raised_even_if_another_one_is_skipped(one_rank):
    made, _, _ = make(report=SimpleNamespace(evaluating=nullcontext))
    rewards = Failing(skips=False)
    rewards.failed = {"near": RewardError("near: gone")}
    made.scorers = replace(made.scorers, rewards=rewards)
    with pytest.raises(RewardError, match="far: gone"):
        made.during(2)


@pytest.mark.parametrize(
    ("step", "logged", "made_up"), [(4, False, [4]), (4, True, []), (3, False, []), (0, False, [])]
)
def test_a_resumed_run_repeats_an_evaluation_that_failed(step, logged, made_up, one_rank):
    made, _, _ = make(report=SimpleNamespace(has_logged=lambda *_: logged), every_steps=2)
    done = []
    made.during = done.append
    made.repeat_missed(step)
    assert done == made_up
