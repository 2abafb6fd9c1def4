"""What a resumed run must find unchanged besides the token ids."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from rlhf_cli.config.errors import InputError
from rlhf_cli.data.preferences import Ranking
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.splits import Splits
from rlhf_cli.data.token_batches import TokenSequence
from rlhf_cli.run.ppo_run import _columns_fingerprint
from rlhf_cli.run.reward_run import _labels_fingerprint
from rlhf_cli.train.reward import mean_weight

ROW = Ranking((TokenSequence((1,), (2,)), TokenSequence((1,), (3,))), 0.5, "p")


@pytest.mark.parametrize("change", [{"margin": 0.5}, {"confidence": 0.9}, {"weight": 2.0}, {"ranks": (0, 0)}])
def test_numbers_of_rows_have_a_fingerprint(change):
    assert _labels_fingerprint(Splits([ROW, ROW], [], [])) == {}
    one, other = (
        _labels_fingerprint(Splits(rows, [], []))
        for rows in ([replace(ROW, **change), ROW], [ROW, replace(ROW, **change)])
    )
    assert one.keys() == other.keys() == {"numbers of data"}
    assert one != other


def test_columns_of_prompts_have_one():
    def of(answer):
        prompts = Splits([Prompt("a", (1,), "a", (), {"answer": answer})], [], [])
        return _columns_fingerprint(SimpleNamespace(prompts=prompts))

    assert of(1) == of(1) != of(2)


def test_rows_whose_weights_are_all_zero_are_named_by_their_split():
    assert mean_weight([], "held-out") == 1.0
    assert mean_weight([replace(ROW, weight=3.0), replace(ROW, weight=0.0)], "held-out") == 1.5
    with pytest.raises(InputError, match="every held-out row has weight 0"):
        mean_weight([replace(ROW, weight=0.0)], "held-out")
