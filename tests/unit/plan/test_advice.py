"""Advice can be pasted: every suggestion is composed again from its arguments and planned again."""

import pytest

from rlhf_cli.config.compose import load
from rlhf_cli.plan.advice import savings, to_fit, to_speed_up
from rlhf_cli.plan.fit import memory_map
from rlhf_cli.plan.memory_map import Topology
from rlhf_cli.plan.phases import Lengths

PPO = ["conf=tiny", "model.dtype=bfloat16", "reward_model.dtype=bfloat16", "ppo.batch_size=16", "ppo.minibatch_size=16"]
PPO += ["ppo.micro_batch_size=8", "rollout.micro_batch_size=16", "+deepspeed.zero_optimization.reduce_bucket_size=1000"]
RM = ["conf=tiny", "model.dtype=bfloat16", "train.micro_batch_size=8"]
LENGTHS = Lengths(40, 40, 200)
TOPOLOGY = Topology(1, 1, on_gpu=True)


def peak(config):
    return memory_map(config, TOPOLOGY, LENGTHS).running_peak


def fits_in(limit):
    def fits(config):
        config.check_ranks(1)
        found = memory_map(config, TOPOLOGY, LENGTHS)
        return found if found.running_peak <= limit else None

    return fits


@pytest.mark.parametrize(("command", "args"), [("train-ppo", PPO), ("train-rm", RM)])
def test_each_suggestion_alone_makes_it_fit(command, args):
    config = load(command, args)
    now = peak(config)
    suggestions = to_fit(config, 1, fits_in(now - 1))
    assert suggestions
    for one in suggestions:
        assert len(one.changes) == 1
        assert peak(load(command, [*args, *one.arguments])) == one.memory.running_peak < now


def test_the_cheapest_comes_first():
    """A smaller micro-batch costs a few percent; recomputation costs a third of the updates."""
    words = [one.arguments for one in to_fit(load("train-ppo", PPO), 1, fits_in(peak(load("train-ppo", PPO)) - 1))]
    micro, recomputing = ("ppo.micro_batch_size=4",), ("model.gradient_checkpointing=true",)
    assert micro in words
    assert words.index(micro) < words.index(recomputing)


def test_changes_are_combined_if_none_is_enough():
    config = load("train-ppo", PPO)
    strongest = load(
        "train-ppo",
        [*PPO, "ppo.micro_batch_size=1", "rollout.micro_batch_size=1", "model.gradient_checkpointing=true",
         "deepspeed=zero3_offload_optimizer"],
    )  # fmt: skip
    limit = int(1.05 * peak(strongest))
    (one,) = to_fit(config, 1, fits_in(limit))
    assert len(one.changes) > 1
    assert peak(load("train-ppo", [*PPO, *one.arguments])) <= limit


def test_nothing_is_suggested_if_nothing_helps():
    assert to_fit(load("train-ppo", PPO), 1, fits_in(1000)) == []


def test_free_memory_is_used_by_changes_that_still_fit():
    small = [*PPO, "ppo.micro_batch_size=1", "rollout.micro_batch_size=2", "model.gradient_checkpointing=true"]
    config = load("train-ppo", small)
    limit = 2 * peak(config)
    suggestions = to_speed_up(config, 1, fits_in(limit))
    assert {one.arguments[0].split("=")[0] for one in suggestions} >= {
        "ppo.micro_batch_size",
        "model.gradient_checkpointing",
    }
    for one in suggestions:
        assert peak(load("train-ppo", [*small, *one.arguments])) <= limit


def test_a_micro_batch_is_not_larger_than_the_rows_of_a_rank():
    """16 rows on 4 ranks are 4 each."""
    config = load("train-ppo", [*PPO, "ppo.micro_batch_size=2", "rollout.micro_batch_size=4"])
    words = [word for one in to_speed_up(config, 4, fits_in(10**15)) for word in one.arguments]
    assert "ppo.micro_batch_size=4" in words
    assert not any(word.startswith("rollout.") for word in words)


def test_savings_are_of_a_step_and_sorted_by_size():
    config = load("train-ppo", PPO)
    found = savings(config, 1, lambda changed: memory_map(changed, TOPOLOGY, LENGTHS))
    saved = [size for _, size in found]
    assert saved == sorted(saved, reverse=True)
    assert all(size > 0 for size in saved)
    for change, size in found:
        assert peak(config) - peak(load("train-ppo", [*PPO, *change.arguments])) == size


def test_options_that_exclude_each_other_are_not_suggested():
    """bfloat16 states exclude an optimizer in host memory."""
    args = [*PPO, "deepspeed=zero3_offload_optimizer"]
    config = load("train-ppo", args)
    found = savings(config, 1, lambda changed: memory_map(changed, TOPOLOGY, LENGTHS))
    assert not any("state_dtype" in word for change, _ in found for word in change.arguments)
    for one in to_fit(config, 1, fits_in(peak(config) - 1)):
        load("train-ppo", [*args, *one.arguments])
