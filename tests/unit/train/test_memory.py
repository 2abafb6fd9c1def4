"""The advice of an out-of-memory error, with its arithmetic worked out by hand for a model of 8 billion weights."""

from dataclasses import replace

import pytest

from rlhf_cli.config.load import load
from rlhf_cli.train.memory import Trained, out_of_memory_advice

# 32 layers of width 4096 in 2 bytes a number: 32 x 4096 x 2 = 262,144 bytes a token and number of a layer
TWO_LLAMA_8B = Trained(weights=16_000_000_000, layers=32, width=4096, kv_width=1024, number_bytes=2)
PPO = [
    *["conf=tiny", "data.max_prompt_tokens=512", "rollout.max_new_tokens=128", "rollout.micro_batch_size=32"],
    *["ppo.batch_size=64", "ppo.minibatch_size=64", "ppo.micro_batch_size=8"],
]
RM = ["conf=tiny", "data.max_tokens=1024", "train.batch_size=64", "train.micro_batch_size=8"]
HEAD = "any of these makes room; the run then goes on with run.resume=true:"


def advice(command, args, trained=TWO_LLAMA_8B, num_ranks=8):
    return out_of_memory_advice(load(command, args), trained, num_ranks).splitlines()


def test_ppo():
    """Rows of 512 + 128 = 640 tokens.

    4 rows fewer, 17 numbers a layer: 4 x 640 x 262,144 x 17 = 11,408,506,880 bytes, 10.625 GiB.
    16 of the 17 numbers of 8 rows: 8 x 640 x 262,144 x 16 = 21,474,836,480 bytes, 20 GiB.
    12 bytes of 16e9 weights on 8 GPUs: 24e9 bytes, 22.35 GiB.
    Keys and values of 16 rows fewer: 2 x 32 x 1024 x 2 = 131,072 bytes a token, x 16 x 640 = 1.25 GiB.
    2 bytes of 8e9 weights of one model, but for the 1e9 that ZeRO-3 keeps: 14e9 bytes, 13.04 GiB.
    """
    assert advice("train-ppo", PPO) == [
        HEAD,
        "  ppo.micro_batch_size=4               saves about 10.62 GiB a GPU (now 8)",
        "  model.gradient_checkpointing=true    saves about 20.00 GiB a GPU (now False; a third more time)",
        "  deepspeed=zero3_offload              saves about 22.35 GiB a GPU (AdamW's state to the host; slower)",
        "  rollout.micro_batch_size=16          saves about 1.25 GiB a GPU (now 32)",
        "  ppo.gather=false                     saves about 13.04 GiB a GPU (updates fetch layer by layer; slower)",
    ]


def test_ppo_that_recomputes_already():
    """One number a layer is kept: 4 x 640 x 262,144 = 671,088,640 bytes, 0.625 GiB; and nothing more to recompute."""
    assert advice("train-ppo", [*PPO, "model.gradient_checkpointing=true"])[1:3] == [
        "  ppo.micro_batch_size=4               saves about 0.62 GiB a GPU (now 8)",
        "  model.gradient_checkpointing=true    saves about 0.00 GiB a GPU (now True; a third more time)",
    ]


def test_a_reward_model():
    """Rows of two answers of 1024 tokens.

    4 rows fewer: 4 x 2048 x 262,144 x 17 = 36,507,222,016 bytes, 34 GiB; 8 rows with 16: 64 GiB; answers of 512 tokens
    less: 8 x 2 x 512 x 262,144 x 17 = 34 GiB too. 12 bytes of 8e9 weights on 3 GPUs: 32e9 bytes, 29.80 GiB.
    """
    assert advice("train-rm", RM, replace(TWO_LLAMA_8B, weights=8_000_000_000), num_ranks=3) == [
        HEAD,
        "  train.micro_batch_size=4             saves about 34.00 GiB a GPU (now 8)",
        "  model.gradient_checkpointing=true    saves about 64.00 GiB a GPU (now False; a third more time)",
        "  deepspeed=zero3_offload              saves about 29.80 GiB a GPU (AdamW's state to the host; slower)",
        "  data.max_tokens=512                  saves about 34.00 GiB a GPU (now 1024; longer rows are dropped)",
        "  train.gather=false                   saves about 13.04 GiB a GPU (updates fetch layer by layer; slower)",
    ]


@pytest.mark.parametrize(("command", "args", "key"), [("train-ppo", PPO, "ppo"), ("train-rm", RM, "train")])
def test_whole_weights_are_told_where_letting_them_go_saves_something(command, args, key):
    """Not on one rank, not where they are fetched by layers already, not where ZeRO-3 keeps them all anyway."""
    small = replace(TWO_LLAMA_8B, weights=1_000_000_000)
    cases = [(args, TWO_LLAMA_8B, 8), (args, TWO_LLAMA_8B, 1), ([*args, f"{key}.gather=false"], TWO_LLAMA_8B, 8)]
    told = [f"{key}.gather=false" in "".join(advice(command, *case)) for case in [*cases, (args, small, 8)]]
    assert told == [True, False, False, False]


def test_an_odd_number_of_rows():
    """3 become 1: 2 rows fewer, half of what 4 saved above, 5.3125 GiB; 5 become 2."""
    lines = advice("train-ppo", [*PPO, "ppo.micro_batch_size=3", "rollout.micro_batch_size=5"])
    assert lines[1] == "  ppo.micro_batch_size=1               saves about 5.31 GiB a GPU (now 3)"
    assert lines[4].startswith("  rollout.micro_batch_size=2 ")


def test_a_single_row_has_no_half():
    lines = advice("train-ppo", [*PPO, "ppo.micro_batch_size=1", "rollout.micro_batch_size=1"])
    assert lines[1] == "  ppo.micro_batch_size=1               saves about 0.00 GiB a GPU (now 1)"
    assert lines[4] == "  rollout.micro_batch_size=1           saves about 0.00 GiB a GPU (now 1)"


@pytest.mark.parametrize(("command", "args"), [("train-ppo", PPO), ("train-rm", RM)])
def test_before_the_model_is_known_there_is_advice_without_figures(command, args):
    lines = advice(command, args, Trained())
    assert len(lines) == 5
    assert all(" saves about 0.00 GiB a GPU (" in line for line in lines[1:])


@pytest.mark.parametrize(("command", "args"), [("train-ppo", PPO), ("train-rm", RM)])
def test_every_setting_is_one_that_the_command_takes(command, args):
    """What is advised can be put behind the same command as it stands."""
    settings = [line.split()[0] for line in advice(command, args)[1:]]
    assert len(set(settings)) == 5
    load(command, [*args, *settings])
