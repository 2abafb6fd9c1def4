"""Who holds a model: plain PyTorch on one rank, DeepSpeed on several or with offload."""

import pytest
import torch

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import OptimConfig
from rlhf_cli.engine import distributed
from rlhf_cli.engine import factory as choose
from rlhf_cli.engine.factory import frozen_engine, needs_deepspeed, train_engine
from rlhf_cli.engine.plain import PlainFrozen, PlainTrain

ZERO = {"stage": 3, "overlap_comm": False}
CPU_OFFLOAD = {"device": "cpu"}


@pytest.fixture
def made(monkeypatch):
    """What DeepSpeed's engines are asked for, without DeepSpeed."""
    calls = []
    for name in ("ZeroFrozen", "ZeroTrain"):
        monkeypatch.setattr(choose, name, lambda *args, name=name: (calls.append((name, args)), name)[1])
    return calls


def both(deepspeed):
    """A frozen engine and one that trains."""
    frozen, trained = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    return (
        frozen_engine(frozen, torch.float32, deepspeed),
        train_engine(trained, torch.float32, OptimConfig(), 5, deepspeed, 0.9),
    )


@pytest.mark.parametrize(
    "deepspeed", [{}, {"zero_optimization": ZERO}, {"zero_optimization": {"offload_param": {"device": "none"}}}]
)
def test_one_rank_is_plain(deepspeed, made, one_rank):
    assert [type(engine) for engine in both(deepspeed)] == [PlainFrozen, PlainTrain]
    assert made == []


@pytest.mark.parametrize("key", ["offload_param", "offload_optimizer"])
def test_one_rank_with_offload_is_deepspeeds(key, made, one_rank):
    deepspeed = {"zero_optimization": {**ZERO, key: CPU_OFFLOAD}}
    assert both(deepspeed) == ("ZeroFrozen", "ZeroTrain")
    (_, frozen), (_, train) = made
    assert frozen[1:] == (torch.float32, deepspeed)
    assert train[1:] == (torch.float32, OptimConfig(), 5, deepspeed, 0.9)


@pytest.mark.parametrize("deepspeed", [{}, {"zero_optimization": ZERO}])
def test_several_ranks_are_deepspeeds(deepspeed, made, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert needs_deepspeed(deepspeed)
    assert both(deepspeed) == ("ZeroFrozen", "ZeroTrain")


def test_a_key_that_deepspeed_does_not_take_is_refused_on_one_rank_too(one_rank):
    deepspeed = {"zero_optimization": {**ZERO, "stage_3_bucket": 5}}
    for make in (
        lambda: frozen_engine(torch.nn.Linear(2, 1), torch.float32, deepspeed),
        lambda: train_engine(torch.nn.Linear(2, 1), torch.float32, OptimConfig(), 5, deepspeed),
    ):
        with pytest.raises(InputError, match=r"^deepspeed: .* does not accept 'stage_3_bucket': .*"):
            make()
