"""A reward is probed before its scores are used."""

import pytest

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.use.cli_options import Reward
from rlhf_cli.use.response_scorer import ResponseScorer


class Counter:
    """Says another number each time, until `steady`; keeps how many exchanges it was asked
    about.
    """

    def __init__(self):
        self.asked = []
        self.steady = False

    def score(self, exchanges):
        self.asked.append(len(exchanges))
        return [0.5 if self.steady else float(len(self.asked))] * len(exchanges)

    def close(self):
        pass


def exchanges(*columns):
    return [Exchange([{"role": "user", "content": "a"}], "b", each) for each in columns]


def test_a_reward_that_failed_its_probe_is_probed_again():
    source = Counter()
    judge = ResponseScorer(source, "r", is_random=False)
    for _ in range(2):
        with pytest.raises(InputError, match=r"got (1 and then 2|3 and then 4)"):
            judge.score(exchanges({}))
    source.steady = True
    assert judge.score(exchanges({})) == judge.score(exchanges({})) == [0.5]
    assert len(source.asked) == 4 + 2 + 2


def test_a_service_is_named_without_its_query_which_may_hold_a_secret():
    config = RewardSourceConfig(name="reward", url="http://127.0.0.1:1/score?key=s3cret")
    judge = ResponseScorer.open(Reward(config, None, None, "--reward"))
    assert judge.name == "http://127.0.0.1:1/score"
    judge.close()


def test_the_probe_covers_every_column():
    source = Counter()
    source.steady = True
    rows = [{}] * 10 + [{"answer": 1}, {"answer": 2}, {"kind": 3}]
    ResponseScorer(source, "r", is_random=False).score(exchanges(*rows))
    assert source.asked == [10, 10, 13]
