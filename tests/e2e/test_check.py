"""`rlhf check`, and what a run does when a check fails."""

from __future__ import annotations

import json


def test_check_proves_the_set_up_and_writes_nothing(run_rlhf, tmp_path):
    for words in (["train-ppo", "launch.num_gpus=2"], ["train-rm"]):
        command, *more = words
        done = run_rlhf("check", command, "conf=tiny", *more)
        assert done.returncode == 0, done.stderr
        assert "scores do not depend on padding or neighbours" in done.stdout
        assert "FAIL" not in done.stdout
        assert done.stderr == ""
    assert not (tmp_path / "outputs").exists()


def test_a_failed_check_stops_the_run_with_exit_code_2_and_leaves_no_folder(run_rlhf, tmp_path):
    """A reward model whose tokenizer has the policy's vocabulary, EOS and template, and lowers every letter."""
    assert run_rlhf("train-rm", "conf=tiny", "train.num_steps=1", "train.eval_every_steps=0").returncode == 0
    folder = tmp_path / "outputs/tiny_rm/final"
    saved = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**saved, "normalizer": {"type": "Lowercase"}}))
    (tmp_path / "mine.yaml").write_text(
        "defaults:\n  - override /model: tiny_llama\n  - override /data: demo_prompts\n"
        "  - override /deepspeed: zero3_test\n"
        f"run: {{name: mine}}\nreward_model: {{path: {folder}, dtype: float32}}\n"
        "ppo: {num_steps: 1, batch_size: 8, minibatch_size: 4, micro_batch_size: 2}\n"
        "rollout: {max_new_tokens: 8}\neval: {num_prompts: 0}\n"
    )
    done = run_rlhf("train-ppo", "conf=mine.yaml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "1 of 12 checks failed: policy and reward model read the same text" in done.stderr
    assert not (tmp_path / "outputs/mine").exists()
    done = run_rlhf("train-ppo", "conf=mine.yaml", "check.strict=false")
    assert done.returncode == 0, done.stderr
    assert "FAIL" in done.stdout
    assert "check FAIL: policy and reward model read the same text" in (tmp_path / "outputs/mine/log.txt").read_text()
