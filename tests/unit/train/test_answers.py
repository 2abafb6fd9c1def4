"""Who is asked what before and after training, and what is made of the answers."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.config.sections import CheckpointConfig, RolloutConfig, RunConfig
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.tokens import EndTokens, Sequence
from rlhf_cli.engine import distributed
from rlhf_cli.train.answers import Answer, AnswerBook, compare

PROMPTS = [Prompt(f"prompt {n}", (10 + n,), str(n)) for n in range(5)]
EOS = 9


class Sampler:
    """Answers a prompt with its first id, and sampled ones with EOS too."""

    def __init__(self):
        self.asked = []

    def sample(self, prompts, keys, greedy=False):
        self.asked.append((prompts, keys, greedy))
        return [Sequence(prompt, (prompt[0],) if greedy else (prompt[0], EOS)) for prompt in prompts]


class RewardModel:
    """The score of a response is its first id, which only whole weights can say."""

    def __init__(self):
        self.engine, self.held, self.parts = self, None, []

    @contextmanager
    def gathered(self, hold):
        self.held = hold
        yield
        self.held = None

    def score(self, sequences):
        assert self.held is not None
        self.parts.append(len(sequences))
        return torch.tensor([float(sequence.response_ids[0]) for sequence in sequences])


def book(prompts=PROMPTS, **rollout):
    config = TrainPPOConfig(
        run=RunConfig(name="x", seed=7),
        rollout=RolloutConfig(micro_batch_size=2, **rollout),
        checkpoint=CheckpointConfig(every_steps=0),
    )
    renderer = SimpleNamespace(response_text=lambda ids: f"ids {list(ids)}")
    sampler, reward_model = Sampler(), RewardModel()
    made = AnswerBook(prompts, sampler, EndTokens(frozenset({EOS}), 0), reward_model, renderer, config)
    return made, sampler, reward_model


def test_every_prompt_is_answered_greedily_and_sampled_in_order(one_rank):
    made, sampler, reward_model = book()
    answers = made.ask("before")
    assert [(one.mode, one.prompt, one.score) for one in answers] == [
        (mode, f"prompt {n}", 10.0 + n) for mode in ("greedy", "sampled") for n in range(5)
    ]
    assert answers[0] == Answer("before", "greedy", "prompt 0", "ids [10]", 10.0, 1, ended=False)
    assert answers[9] == Answer("before", "sampled", "prompt 4", "ids [14, 9]", 14.0, 2, ended=True)
    assert [asked[2] for asked in sampler.asked] == [True, False]
    assert reward_model.parts == [2, 2, 1] * 2


def test_sampled_answers_draw_the_same_numbers_each_time(one_rank):
    made, sampler, _ = book()
    made.ask("before")
    made.ask("after")
    keys = [asked[1] for asked in sampler.asked]
    assert keys == [[f"7/held-out/{n}" for n in range(5)]] * 4


@pytest.mark.parametrize("gather", [True, False])
def test_the_reward_model_is_held_whole_unless_told_otherwise(gather, one_rank):
    made, _, reward_model = book(gather=gather)
    held = []
    score = reward_model.score
    reward_model.score = lambda part: (held.append(reward_model.held), score(part))[1]
    made.ask("before")
    assert held == [gather] * 6


def test_two_ranks_answer_as_many_prompts_and_one_answer_for_company_is_dropped(monkeypatch):
    """Five prompts become six, the first one twice: rank 1 answers 3, 4 and 0 again."""
    made, sampler, _ = book()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "gather_all", lambda mine: [[replace(one, score=0.0) for one in mine], mine])
    answers = made.ask("before")
    assert sampler.asked[0][0] == [(13,), (14,), (10,)]
    assert [one.prompt for one in answers[:5]] == ["prompt 3", "prompt 4", "prompt 0", "prompt 3", "prompt 4"]


def test_without_prompts_nobody_is_asked():
    made, sampler, _ = book(prompts=[])
    assert made.ask("before") == []
    assert sampler.asked == []


def answer(mode, score, num_tokens, ended):
    return Answer("", mode, "", "", score, num_tokens, ended)


def test_answers_are_compared_in_pairs():
    """Greedy scores 1, 2 become 2, 4: a mean difference of 1.5; nothing was sampled."""
    before = [answer("greedy", 1.0, 3, True), answer("greedy", 2.0, 5, False)]
    after = [answer("greedy", 2.0, 1, True), answer("greedy", 4.0, 2, True)]
    found = compare(before, after)
    assert found.keys() == {"greedy"}
    expected = {
        "num_prompts": 2,
        "score_before": 1.5,
        "score_after": 3.0,
        "difference_mean": 1.5,
        "response_length_before": 4.0,
        "response_length_after": 1.5,
        "eos_rate_before": 0.5,
        "eos_rate_after": 1.0,
    }
    assert {name: found["greedy"][name] for name in expected} == expected
    assert 1.0 <= found["greedy"]["difference_low"] <= 1.5 <= found["greedy"]["difference_high"] <= 2.0
