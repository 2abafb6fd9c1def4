"""One global batch, split in every way among ranks and micro-batches: the same run."""

from __future__ import annotations

import pytest

from tests.e2e.series import assert_same_series, metrics

QUIET = ["check.num_prompts=0", "checkpoint.every_steps=0"]
# (ranks, micro-batch, accumulation) of a minibatch of n = 4: (1, n, 1), (1, 1, n), (2, n/2, 1), (2, 1, n/2)
PPO_SHAPES = {
    "one-pass": ["ppo.micro_batch_size=4", "rollout.micro_batch_size=8"],
    "row-by-row": ["ppo.micro_batch_size=1", "rollout.micro_batch_size=1"],
    "two-ranks": ["launch.num_gpus=2", "ppo.micro_batch_size=2", "rollout.micro_batch_size=3"],
    "two-ranks-row-by-row": ["launch.num_gpus=2", "ppo.micro_batch_size=1"],
    "token-budget": ["ppo.micro_batch_tokens=150"],
    "two-ranks-token-budget": ["launch.num_gpus=2", "ppo.micro_batch_tokens=150"],
}
RM_SHAPES = {
    "one-pass": ["train.micro_batch_size=8"],
    "row-by-row": ["train.micro_batch_size=1"],
    "two-ranks": ["launch.num_gpus=2", "train.micro_batch_size=4"],
    "two-ranks-row-by-row": ["launch.num_gpus=2", "train.micro_batch_size=1"],
    "token-budget": ["train.micro_batch_tokens=400"],
    "two-ranks-token-budget": ["launch.num_gpus=2", "train.micro_batch_tokens=400"],
}


def test_ppo_is_the_same_however_its_batch_is_split(run_rlhf, tmp_path):
    """Two steps of two epochs with two minibatches; sampling included. Responses end early to be of uneven lengths."""
    ppo = ["ppo.num_steps=2", "ppo.num_epochs=2", "eval.num_prompts=0", "ppo.kl_target=0.5", "ppo.entropy_coef=0.01"]
    for name, shape in PPO_SHAPES.items():
        done = run_rlhf("train-ppo", "conf=tiny", *ppo, *QUIET, *shape, f"run.name={name}", timeout=120)
        assert done.returncode == 0, done.stderr
    outputs = tmp_path / "outputs"
    for name in PPO_SHAPES.keys() - {"one-pass"}:
        assert_same_series(outputs / "one-pass", outputs / name)
    assert metrics(outputs / "one-pass")[1]["kl"] != 0


@pytest.mark.parametrize("objective", [[], ["train.centering_coef=0.1", "train.label_smoothing=0.1"]])
def test_the_reward_model_is_the_same_however_its_batch_is_split(objective, run_rlhf, tmp_path):
    """Three updates and the evaluations around them; pairs of uneven lengths."""
    rm = ["train.num_steps=3", "data.eval=null", *objective]
    shapes = RM_SHAPES if not objective else dict(list(RM_SHAPES.items())[::3])
    for name, shape in shapes.items():
        done = run_rlhf("train-rm", "conf=tiny", *rm, *QUIET, *shape, f"run.name={name}", timeout=120)
        assert done.returncode == 0, done.stderr
    for name in shapes.keys() - {"one-pass"}:
        assert_same_series(tmp_path / "outputs/one-pass", tmp_path / "outputs" / name)
