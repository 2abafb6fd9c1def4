"""The arithmetic of batches, worked out by hand."""

import pytest

from rlhf_cli.config.compose import load
from rlhf_cli.config.errors import InputError
from rlhf_cli.plan.batch_counts import batch_counts

PPO = ["conf=tiny", "ppo.batch_size=64", "ppo.minibatch_size=32", "ppo.micro_batch_size=3", "ppo.num_epochs=2"]
PPO += ["ppo.num_steps=100", "ppo.value_warmup_steps=10", "data.max_prompt_tokens=84", "rollout.max_new_tokens=16"]
RM = ["conf=tiny", "train.num_steps=null", "train.batch_size=16", "train.micro_batch_size=4", "train.num_epochs=3"]


def test_ppo():
    """A rank has 8 of 32 responses: 3 + 3 + 2. 2 epochs x 2 minibatches are 4 updates, 360 in 90 steps."""
    found = batch_counts(load("train-ppo", [*PPO, "plan.deadline_hours=2"]), 4)
    assert list(found.lines) == [
        "prompts per step: 64 = 4 ranks x 16, one response each",
        "minibatches per step: 2 of 32 responses = 4 ranks x 8",
        "micro-batches per rank and minibatch: 3 x 3 (the last: 2) responses; gradients are accumulated over 3",
        "updates per step: 4 = 2 epochs x 2 minibatches, for the policy and the value model each",
        "run: 100 steps = 6400 episodes, 360 policy updates, at most 102400 response tokens",
        "to finish in 2 h: 14.2 response tokens per second, or 7200 s / 100 = 72.0 s per step",
    ]
    assert found.numbers == {
        "ranks": 4,
        "prompts_per_step": 64,
        "minibatches": 2,
        "micro_batches": 3,
        "updates_per_step": 4,
        "policy_updates": 360,
        "episodes": 6400,
        "response_tokens": 102_400,
        "tokens_per_s": pytest.approx(102_400 / 7200),
    }


def test_a_budget_of_tokens_counts_the_longest_rows():
    """84 + 16 tokens per row: 2 rows fit in 250 tokens, so 8 rows need 4 passes."""
    line = batch_counts(load("train-ppo", [*PPO, "ppo.micro_batch_tokens=250"]), 4).lines[2]
    wanted = (
        "micro-batches per rank and minibatch: 4 x 2 responses at full length (more if shorter: 250 tokens per pass)"
    )
    assert line.startswith(wanted)


def test_a_reward_model_before_and_after_its_data_are_known():
    config = load("train-rm", [*RM, "plan.deadline_hours=0.5"])
    assert list(batch_counts(config, 2).lines) == [
        "rows per step: 16 = 2 ranks x 8, one update",
        "micro-batches per rank: 2 x 4 rows; gradients are accumulated over 2",
        "run: 3 epochs; updates = rows x 3 / 16",
    ]
    known = batch_counts(config, 1, num_steps=30)
    assert known.lines[0] == "rows per step: 16 = 1 rank x 16, one update"
    assert list(known.lines[-2:]) == [
        "run: 30 steps = 30 updates, 480 rows",
        "to finish in 0.5 h: 0.27 rows per second",
    ]
    assert known.numbers == {
        "ranks": 1,
        "rows_per_step": 16,
        "micro_batches": 4,
        "updates_per_step": 1,
        "updates": 30,
        "rows": 480,
        "rows_per_s": pytest.approx(480 / 1800),
    }


def test_a_reward_model_with_a_budget_counts_two_answers_a_row():
    """Rows of 2 x 50 tokens: 4 fit in 400 tokens. If not even one fits, each row gets its own pass."""
    words = [*RM, "data.max_tokens=50"]
    for budget, wanted in ((400, "4 x 4"), (399, "6 x 3 (the last: 1)"), (99, "16 x 1"), (101, "16 x 1")):
        line = batch_counts(load("train-rm", [*words, f"train.micro_batch_tokens={budget}"]), 1).lines[1]
        assert line.startswith(f"micro-batches per rank: {wanted} rows at full length")


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        (
            "train-ppo",
            PPO,
            r"ppo\.batch_size must be a multiple of the number of ranks, such as 66, got 64 = 21\.33 x 3",
        ),
        (
            "train-rm",
            RM,
            r"train\.batch_size must be a multiple of the number of ranks, such as 18, got 16 = 5\.33 x 3",
        ),
    ],
)
def test_an_indivisible_batch_is_refused_with_the_arithmetic(command, args, message):
    with pytest.raises(InputError, match=message):
        batch_counts(load(command, args), 3)
