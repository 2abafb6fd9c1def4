"""Model states, worked out by hand for a small model and compared with DeepSpeed's own estimate."""

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from transformers import AutoConfig

from rlhf_cli.config.sections import DType, OptimConfig
from rlhf_cli.config.zero_settings import REDUCE_BUCKET, ZeroSettings, with_weights_on_host
from rlhf_cli.engine import param_groups
from rlhf_cli.plan.architecture import Architecture
from rlhf_cli.plan.engine_memory import EngineMemory, Sharding
from rlhf_cli.plan.memory_map import total
from tests.unit.plan.fake import LLAMA

# embeddings 300 x 32; a layer: norms 2 x 32, queries and output 2 x 32 x 32, keys and values 2 x 32 x 16, MLP 3 x 32 x
# 64; last norm 32; head 300 x 32
WEIGHTS = 300 * 32 + 6 * (64 + 2048 + 1024 + 6144) + 32 + 300 * 32
BUCKET = {"reduce_bucket_size": 1000}


def engine(ranks=1, dtype=torch.bfloat16, trained=True, state_dtype=DType.float32, ema=False, on_gpu=True, **zero):
    architecture = Architecture(AutoConfig.for_model(**LLAMA), False, dtype, True, False)
    optim = OptimConfig(state_dtype=state_dtype) if trained else None
    return EngineMemory("policy", architecture, Sharding(ranks, ZeroSettings(**{**BUCKET, **zero}), on_gpu), optim, ema)


def held(items):
    return {item.what: item.bytes for item in items}


def test_weights_are_counted_once():
    assert engine().weights == WEIGHTS == 74_912


def test_zero3_keeps_the_gradients_of_one_layer():
    assert engine().layer_gradients() == []
    assert held(engine(ranks=2).layer_gradients()) == {"gradients of a layer": 2 * (64 + 2048 + 1024 + 6144)}


@pytest.mark.parametrize(
    ("given", "resident", "gradients", "step"),
    [
        # bfloat16 weights, float32 masters, two float32 moments; one micro-batch's gradients, float32 for the step
        ({}, {"weights": 2, "master weights": 4, "optimizer states": 8}, (2, 4), (2 * WEIGHTS, 0)),
        # float32 weights are their own masters
        ({"dtype": torch.float32}, {"weights": 4, "optimizer states": 8}, (4, 4), (0, 0)),
        # so are bfloat16 ones; of float32 sums one gradient at a time is in that type, too
        ({"state_dtype": DType.bfloat16}, {"weights": 2, "optimizer states": 4}, (2, 4), (0, 2 * 300 * 32)),
        (
            {"ema": True},
            {"weights": 2, "master weights": 4, "optimizer states": 8, "moving average": 4},
            (2, 4),
            (2 * WEIGHTS, 0),
        ),
        ({"trained": False}, {"weights": 2}, None, None),
    ],
)
def test_bytes_per_weight_on_one_rank(given, resident, gradients, step):
    """gradients (bytes per weight) and step (bytes): with one micro-batch per update, and with several."""
    one = engine(**given)
    assert held(one.resident()) == {what: each * WEIGHTS for what, each in resident.items()}
    assert one.on_host() == []
    assert one.gathered(hold=True) == one.gathered(hold=False) == []
    assert one.reduction() == one.largest_gathered() == []
    assert held(one.start()) == {"weights": resident["weights"] * WEIGHTS}
    if given.get("trained", True):
        assert one.gradients(0) == []
        for num, several in ((1, False), (2, True), (3, True)):
            assert total(one.gradients(num)) == gradients[several] * WEIGHTS
            assert total(one.step(num)) == step[several]


def test_the_step_of_one_rank_converts_some_parameters_at_a_time(monkeypatch):
    """Either a group, whose old gradients are freed, or the largest parameter, held in both types."""
    monkeypatch.setattr(param_groups, "GROUP_SIZE", 20_000)
    assert total(engine().step(1)) == (4 - 2) * 20_000
    monkeypatch.setattr(param_groups, "GROUP_SIZE", 1000)
    assert total(engine().step(1)) == 4 * 300 * 32


@pytest.mark.parametrize(
    ("given", "resident", "host", "step"),
    [
        ({}, {"weights": 2, "master weights": 4, "optimizer states": 8, "gradients": 2}, {}, 6),
        # DeepSpeed copies float32 weights too, and bfloat16 ones that are updated as such
        (
            {"dtype": torch.float32},
            {"weights": 4, "master weights": 4, "optimizer states": 8, "gradients": 4},
            {},
            4,
        ),
        (
            {"state_dtype": DType.bfloat16},
            {"weights": 2, "master weights": 2, "optimizer states": 4, "gradients": 2},
            {},
            2,
        ),
        # gradients of micro-batches added up in float32 are in the optimizer's type already
        (
            {"float32_gradients": True},
            {"weights": 2, "master weights": 4, "optimizer states": 8, "gradients": 4},
            {},
            4,
        ),
        (
            {"offload_optimizer": True},
            {"weights": 2},
            {
                "master weights": 4,
                "optimizer states": 8,
                "gradients": 2,
                "gradients for the optimizer": 4,
            },
            0,
        ),
        (
            {"offload_param": True},
            {"master weights": 4, "optimizer states": 8, "gradients": 2},
            {"weights": 2},
            6,
        ),
    ],
)
def test_bytes_per_weight_on_two_ranks(given, resident, host, step):
    """Every parameter has an even size, so nothing is padded; the bucket has 1000 elements per rank."""
    one = engine(2, **given)
    each = 4 if given.get("dtype") is torch.float32 else 2
    half = WEIGHTS // 2
    bucket = {"gradient bucket": 1000 * each}
    assert held(one.resident()) == {what: size * half for what, size in resident.items()} | bucket
    assert held(one.on_host()) == {what: size * half for what, size in host.items()}
    assert one.gradients(2) == []
    assert total(one.step(2)) == step * half
    assert total(one.largest_gathered()) == 300 * 32 * each
    assert total(one.reduction()) == 300 * 32 * each  # the largest parameter is more than the bucket
    sent = each * half if given.get("offload_param") else 0
    assert held(one.gathered(hold=True)) == {"gathered weights": WEIGHTS * each + sent}


def test_gathered_layers_are_limited_by_deepspeed_s_options():
    one = engine(2, stage3_max_live_parameters=1000, stage3_prefetch_bucket_size=500)
    assert held(one.gathered(hold=False)) == {"gathered layers": 2 * 1500}
    assert held(engine(2).gathered(hold=False)) == {"gathered layers": 2 * WEIGHTS}


def test_shards_are_padded_to_a_multiple_of_the_ranks():
    """Each of 7 ranks has a seventh of every parameter, rounded up."""
    sizes = engine().sizes
    assert engine(7).shard == sum(-(-size // 7) for size in sizes) > WEIGHTS / 7


def test_one_rank_with_offloading_uses_deepspeed():
    one = engine(1, offload_param=True)
    assert one.sharding.uses_zero
    assert held(one.gathered(hold=True)) == {"gathered weights": 2 * WEIGHTS}
    assert engine(1, offload_optimizer=True).gathered(hold=True) == []
    assert one.reduction() == one.largest_gathered() == []


def test_a_model_has_no_moving_average_by_default():
    one = engine()
    assert "moving average" not in held(EngineMemory("policy", one.architecture, one.sharding, one.optim).resident())


def test_a_step_updates_groups_of_weights():
    """Gradients of a group in 2 bytes and in 4; a parameter is not split, so the largest can be added."""
    assert total(engine(2, sub_group_size=1000).step(2)) == 6 * (1000 + 300 * 32 // 2)


def test_without_a_gpu_offloaded_weights_are_not_copied():
    assert engine(1, offload_param=True, on_gpu=False).gathered(hold=True) == []
    assert held(engine(2, offload_param=True, on_gpu=False).gathered(hold=True)) == {"gathered weights": 2 * WEIGHTS}


def test_starting_an_engine_copies_master_weights_for_a_moment():
    """Two ranks: weights in 2 bytes, masters in 4, and a copy of at most sub_group_size in 4."""
    half = WEIGHTS // 2
    wanted = {"weights": 2 * half, "master weights": 4 * half, "master weights being copied": 4 * half}
    assert held(engine(2).start()) == wanted
    grouped = held(engine(2, sub_group_size=1000).start())
    assert grouped["master weights being copied"] == 4 * (1000 + 300 * 32 // 2)
    assert held(engine(2, offload_optimizer=True).start()) == {"weights": 2 * half}
    assert held(engine(2, torch.float32).start()) == {"weights": 4 * half, "master weights": 4 * half}


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_states_agree_with_deepspeed_s_own_estimate(ranks):
    """DeepSpeed counts 18 bytes per trained weight: our 16, and 2 for which its engine has no tensor.

    The rest of its figure is the largest layer in float32, which here is what is gathered.
    """
    ours = total(item for item in engine(ranks).resident() if item.what != "gradient bucket")
    _, theirs, largest = estimate_zero3_model_states_mem_needs(WEIGHTS, 300 * 32, ranks, 1, False, False, True)
    states = theirs - largest
    assert states == int(18 * WEIGHTS / ranks)
    assert ours == pytest.approx(states * 16 / 18, rel=0.005)


@pytest.mark.parametrize("params", [False, True])
def test_states_in_host_memory_agree_with_deepspeed_s_own_estimate(params):
    """On the host DeepSpeed counts 16 or 18 bytes per weight, times 1.5 for buffers; we count 2 more instead."""
    one = engine(2, offload_optimizer=True, offload_param=params)
    theirs, _, _ = estimate_zero3_model_states_mem_needs(WEIGHTS, 300 * 32, 2, 1, True, params, True, 1.0)
    assert 2 * total(one.on_host()) == theirs + 2 * WEIGHTS


def test_a_checkpoint_and_an_export():
    assert (engine(4).saved, engine(4, ema=True).saved) == (12 * WEIGHTS, 16 * WEIGHTS)
    assert engine(state_dtype=DType.bfloat16).saved == 6 * WEIGHTS
    assert (engine(4).exported, engine(4, ema=True).exported) == (2 * WEIGHTS, 4 * WEIGHTS)
    assert engine(trained=False).saved == 0


def test_defaults_are_deepspeed_s_except_for_the_bucket():
    theirs, ours = DeepSpeedZeroConfig(), ZeroSettings.of({})
    assert ours.sub_group_size == theirs.sub_group_size
    assert ours.stage3_prefetch_bucket_size == theirs.prefetch_bucket_size
    assert ours.stage3_param_persistence_threshold == theirs.param_persistence_threshold
    assert ours.stage3_max_live_parameters == theirs.max_live_parameters
    assert ours.reduce_bucket_size == REDUCE_BUCKET < theirs.reduce_bucket_size
    assert not ours.offloads


def test_settings_are_read_as_deepspeed_reads_them():
    zero = {"reduce_bucket_size": 5e6, "stage3_max_live_parameters": "1e8", "offload_param": {"device": "cpu"}}
    found = ZeroSettings.of({"zero_optimization": zero})
    assert (found.reduce_bucket_size, found.stage3_max_live_parameters) == (5_000_000, 100_000_000)
    assert found.offloads
    assert not ZeroSettings.of({"zero_optimization": {"offload_param": {"device": "none"}}}).offloads
    assert not found.float32_gradients
    assert ZeroSettings.of({"data_types": {"grad_accum_dtype": "fp32"}}).float32_gradients


def test_weights_on_the_host_change_nothing_else():
    given = {"zero_optimization": {"stage": 3, "overlap_comm": True}, "steps_per_print": 7}
    found = with_weights_on_host(given)
    assert found["zero_optimization"] == {
        "stage": 3,
        "overlap_comm": True,
        "offload_param": {"device": "cpu", "pin_memory": False},
    }
    assert found["steps_per_print"] == 7
    assert "offload_param" not in given["zero_optimization"]
    pinned = {"zero_optimization": {"offload_param": {"device": "cpu", "pin_memory": True}}}
    assert with_weights_on_host(pinned)["zero_optimization"]["offload_param"]["pin_memory"] is True
