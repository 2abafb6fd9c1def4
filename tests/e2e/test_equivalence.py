"""One global batch, split in every way among ranks and micro-batches: the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.series import assert_same_series, metrics

QUIET = ["check.num_prompts=0", "checkpoint.every_steps=0"]
# (ranks, micro-batch, accumulation) of a minibatch of n = 4: (1, n, 1), (1, 1, n), (2, n/2, 1), (2, 1, n/2)
PPO_SHAPES = {
    "one-pass": ["ppo.micro_batch_size=4", "rollout.micro_batch_size=8"],
    "row-by-row": ["ppo.micro_batch_size=1", "rollout.micro_batch_size=1"],
    "two-ranks": ["launch.num_gpus=2", "ppo.micro_batch_size=2", "rollout.micro_batch_size=3"],
    "token-budget": ["ppo.micro_batch_tokens=150", "rollout.micro_batch_tokens=300"],
    "texts-whole": ["model.packing=false", "reward_model.packing=false", "ppo.micro_batch_size=2"],
    "two-ranks-texts-whole": [
        *("launch.num_gpus=2", "model.packing=false", "reward_model.packing=false", "ppo.micro_batch_size=1"),
    ],
    "two-ranks-token-budget": ["launch.num_gpus=2", "ppo.micro_batch_tokens=150", "rollout.gather=false"],
    "two-ranks-by-layers": [
        *("launch.num_gpus=2", "ppo.micro_batch_size=1", "ppo.gather=false", "ppo.offload_frozen=true"),
    ],
    "frozen-offloaded": ["ppo.offload_frozen=true"],
}
# a whole step in one pass of each rank, which may then go on from scoring's pass; and the same passes made again
ONE_PASS = ["ppo.minibatch_size=8", "ppo.num_epochs=2", "ppo.micro_batch_size=8"]
ONE_PASS_SHAPES = {
    "kept": [],
    "again": ["ppo.reuse_forward=false"],
    "kept-two-ranks": ["launch.num_gpus=2"],
}
RM_SHAPES = {
    "one-pass": ["train.micro_batch_size=8"],
    "row-by-row": ["train.micro_batch_size=1"],
    "two-ranks": ["launch.num_gpus=2", "train.micro_batch_size=4"],
    "two-ranks-row-by-row": ["launch.num_gpus=2", "train.micro_batch_size=1"],
    "token-budget": ["train.micro_batch_tokens=400"],
    "texts-whole": ["model.packing=false", "train.micro_batch_size=4"],
    "two-ranks-token-budget": ["launch.num_gpus=2", "train.micro_batch_tokens=400", "train.gather=false"],
}


# every option of the objective that can be on together with the others
PPO_OBJECTIVE = [
    *("ppo.num_steps=2", "ppo.num_epochs=2", "ppo.kl_target=0.5", "ppo.kl_loss_coef=0.1", "ppo.entropy_coef=0.01"),
    *("ppo.cliprange_high=0.3", "ppo.dual_clip=3", "ppo.reward_clip=1", "ppo.whiten_rewards=true"),
    *("ppo.missing_eos=replace", "ppo.missing_eos_penalty=1", "ppo.min_length=4", "ppo.min_length_penalty=0.5"),
    *("ppo.early_stop_kl=1", "ppo.ema_decay=0.9", "ppo.value_warmup_steps=1"),
    *("pretrain.path=text.txt", "pretrain.max_tokens=40", "pretrain.batch_size=4", "pretrain.micro_batch_size=1"),
]
RM_OBJECTIVES = {
    "pairs": ([name for name in RM_SHAPES if name != "two-ranks-row-by-row"], []),
    "rankings": (
        ["one-pass", "two-ranks-row-by-row", "two-ranks-token-budget", "texts-whole"],
        ["data.train=rankings.jsonl", "data.ranking_column=answers", "train.centering_coef=0.1"],
    ),
    "numbers": (
        ["one-pass", "two-ranks-row-by-row"],
        ["data.train=pairs.jsonl", "data.margin_column=gap", "data.confidence_column=sure"],
    ),
}


def write_rows(folder: Path) -> None:
    """Sixteen prompts with two to four answers of uneven lengths, the best first; pairs with margin and confidence."""
    rankings = [
        {"prompt": f"question {n}", "answers": ["yes! " * k + f"answer {n}" for k in range(3, 1 - n % 3, -1)]}
        for n in range(16)
    ]
    pairs = [
        {"prompt": row["prompt"], "chosen": row["answers"][0], "rejected": row["answers"][1], "gap": n / 8, "sure": 0.9}
        for n, row in enumerate(rankings)
    ]
    for name, rows in (("rankings", rankings), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_shapes(run_rlhf, run_all, words, shapes):
    """Run a command in every shape: those of one rank in one process, those of two each as a user would start them."""
    lines = {name: [*words, *shape, f"run.name={name}"] for name, shape in shapes.items()}
    together = [name for name, shape in shapes.items() if "launch.num_gpus=2" in shape]
    run_all(*(lines[name] for name in lines if name not in together))
    for name in together:
        done = run_rlhf(*lines[name], timeout=120)
        assert done.returncode == 0, done.stderr


def test_ppo_is_the_same_however_its_batch_is_split(run_rlhf, run_all, tmp_path):
    """Two steps of two epochs with two minibatches; sampling included. Responses end early to be of uneven lengths."""
    (tmp_path / "text.txt").write_text("Some text that the policy should not forget. " * 20)
    words = ["train-ppo", "conf=tiny", *PPO_OBJECTIVE, "eval.num_prompts=0", *QUIET]
    run_shapes(run_rlhf, run_all, words, PPO_SHAPES)
    outputs = tmp_path / "outputs"
    for name in PPO_SHAPES.keys() - {"one-pass"}:
        assert_same_series(outputs / "one-pass", outputs / name)
    assert metrics(outputs / "one-pass")[1]["loss/kl"] > 0


def test_ppo_is_the_same_when_scorings_pass_is_the_updates_first(run_rlhf, run_all, tmp_path):
    """Two steps of two epochs on one minibatch, of which the first pass is kept or made again."""
    words = ["train-ppo", "conf=tiny", "ppo.num_steps=2", *ONE_PASS, "eval.num_prompts=0", *QUIET]
    run_shapes(run_rlhf, run_all, words, ONE_PASS_SHAPES)
    for name in ONE_PASS_SHAPES.keys() - {"kept"}:
        assert_same_series(tmp_path / "outputs/kept", tmp_path / "outputs" / name)


@pytest.mark.parametrize("objective", RM_OBJECTIVES)
def test_the_reward_model_is_the_same_however_its_batch_is_split(objective, run_rlhf, run_all, tmp_path):
    """Three updates and the evaluations around them; answers of uneven lengths."""
    write_rows(tmp_path)
    shapes, options = RM_OBJECTIVES[objective]
    words = ["train-rm", "conf=tiny", "train.num_steps=3", "data.eval=null", *options, *QUIET]
    run_shapes(run_rlhf, run_all, words, {name: RM_SHAPES[name] for name in shapes})
    for name in shapes[1:]:
        # the last evaluation is of the normalised head: scores are divided by their deviation, and so is rounding
        assert_same_series(tmp_path / "outputs/one-pass", tmp_path / "outputs" / name, rtol=5e-5)
