"""The real commands in child processes, on one rank and on two."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import REPOSITORY, child_environment
from tests.e2e.series import assert_same_series, metrics

STEP_METRICS = {
    *(
        "score",
        "score_std",
        "kl",
        "kl_per_token",
        "reward",
        "return",
        "value",
        "entropy",
        "response_length",
        "eos_rate",
        "repetition",
        "advantage_std",
    ),
    *("loss/policy", "loss/value", "approx_kl", "clipfrac/policy", "clipfrac/value"),
    *("grad_norm/policy", "grad_norm/value", "lr/policy", "lr/value", "skipped_updates", "num_updates", "kl_coef"),
    *("time/rollout", "time/score", "time/update", "time/step", "tokens_per_s"),
    *("memory/rollout_gib", "memory/score_gib", "memory/update_gib", "memory/peak_gib"),
    *("perf/mfu", "perf/mfu_rollout", "perf/mfu_score", "perf/mfu_update"),
    *("perf/rollout_tokens_per_s", "perf/score_tokens_per_s", "perf/update_tokens_per_s"),
}


def under_launcher(folder: Path, launcher: str, *words: str) -> None:
    """Run the launcher that is installed beside this Python, and fail if it fails."""
    command = [str(Path(sys.executable).with_name(launcher)), *words]
    environment = child_environment()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def in_fresh_process(code: str) -> None:
    """Run code that knows transformers and not this package."""
    words = [sys.executable, "-c", code + "\nimport sys; assert 'rlhf_cli' not in sys.modules"]
    done = subprocess.run(words, env=child_environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def check_policy(run: Path) -> None:
    """The exported policy, in plain transformers, gives the greedy answers that the run wrote down at its end."""
    in_fresh_process(
        "import json, torch; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        f"folder = {str(run / 'final/policy')!r}; m = M.from_pretrained(folder).eval(); t = T.from_pretrained(folder)\n"
        f"samples = [json.loads(line) for line in open({str(run / 'samples.jsonl')!r})]\n"
        "asked = [s for s in samples if s['stage'] == 'after' and s['mode'] == 'greedy']; assert asked\n"
        "system = {'role': 'system', 'content': 'You are a friendly customer service agent. Be brief.'}\n"
        "for s in asked:\n"
        "    chat = [system, {'role': 'user', 'content': s['prompt']}]\n"
        "    text = t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)\n"
        "    ids = t(text, add_special_tokens=False, return_tensors='pt').input_ids\n"
        "    out = m.generate(ids, max_new_tokens=16, do_sample=False, pad_token_id=0)[0, ids.shape[1]:]\n"
        "    assert t.decode(out, skip_special_tokens=True) == s['response'], s\n"
    )


def documented() -> set[str]:
    """The names in docs/metrics.md."""
    return set(re.findall(r"`([a-z_/]+)`", (REPOSITORY / "docs/metrics.md").read_text()))


def check_reward_model(run: Path) -> None:
    """The exported reward model, in plain transformers, has the accuracy and margin that the run wrote down."""
    in_fresh_process(
        "import json, torch; from importlib.util import find_spec\n"
        "from transformers import AutoModelForSequenceClassification as M, AutoTokenizer as T\n"
        f"folder = {str(run / 'final')!r}; m = M.from_pretrained(folder).eval(); t = T.from_pretrained(folder)\n"
        f"wanted = json.load(open({str(run / 'summary.json')!r}))['after']\n"
        "demo = find_spec('rlhf_cli').submodule_search_locations[0] + '/demo/preferences_eval.jsonl'\n"
        "system = {'role': 'system', 'content': 'You are a friendly customer service agent. Be brief.'}\n"
        "def score(prompt, answer):\n"
        "    chat = [system, {'role': 'user', 'content': prompt}]\n"
        "    text = t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + answer + t.eos_token\n"
        "    return m(t(text, add_special_tokens=False, return_tensors='pt').input_ids).logits.item()\n"
        "rows = [json.loads(line) for line in open(demo)]\n"
        "with torch.no_grad():\n"
        "    margins = [score(r['prompt'], r['chosen']) - score(r['prompt'], r['rejected']) for r in rows]\n"
        "assert abs(sum(margins) / len(rows) - wanted['eval/margin']) < 1e-4\n"
        "assert abs(sum(margin > 0 for margin in margins) / len(rows) - wanted['eval/accuracy']) < 1e-6\n"
    )


def texts_of(pair: dict[str, Any]) -> tuple[str, str, str]:
    return pair["prompt"], pair["chosen"], pair["rejected"]


def check_use(run_all, folder: Path) -> None:
    """What is done with trained models says what training said: of pairs, and of greedy answers."""
    data, limit = "pkg://rlhf_cli.demo", ["--limit", "2"]
    prompts, reward = f"{data}/prompts_eval.jsonl", ["--reward", "outputs/tiny_rm"]
    run_all(
        ["score", "outputs/tiny_rm", "--file", f"{data}/preferences_eval.jsonl", "--out", "pairs.jsonl"],
        ["generate", "outputs/mine", "--file", prompts, *limit, "--greedy", "--out", "answers.jsonl"],
        ["score", "outputs/tiny_rm", "--file", "answers.jsonl", "--out", "scores.jsonl"],
        ["evaluate", "outputs/mine", "--prompts", prompts, *limit, "--greedy", *reward, "--out", "both.jsonl"],
    )

    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    logged = {texts_of(one): one for one in lines("outputs/tiny_rm/pairs.jsonl")}
    for one in lines("pairs.jsonl"):
        for name, close in (("score_chosen", 1e-4), ("score_rejected", 1e-4), ("log_odds", 0.01)):  # odds: a slope
            assert one[name] == pytest.approx(logged[texts_of(one)][name], abs=close)
    samples = lines("outputs/mine/samples.jsonl")
    after = [one for one in samples if (one["stage"], one["mode"]) == ("after", "greedy")]
    assert [one["response"] for one in lines("answers.jsonl")] == [one["response"] for one in after]
    scores = [one["score"] for one in lines("scores.jsonl")]
    policy = [one["policy"] for one in lines("both.jsonl")]
    assert [one["response"] for one in policy] == [one["response"] for one in after]
    assert [one["score"] for one in policy] == pytest.approx(scores, abs=1e-4)  # the system prompt comes in by two ways


def test_reward_model_then_ppo_with_it(run_rlhf, run_all, tmp_path):
    """Both commands in a row: the exported reward model is what PPO scores with."""
    done = run_rlhf("train-rm", "conf=tiny")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs/tiny_rm"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["calibration/mean"] == pytest.approx(0, abs=1e-4)
    assert summary["calibration/std"] == pytest.approx(1, abs=1e-4)
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {name for record in logged for name in record} <= documented()
    assert {"eval/accuracy", "eval/longer_wins_accuracy", "eval/margin", "eval/loss"} <= set(summary["after"])
    check_reward_model(folder)
    config = tmp_path / "mine.yaml"
    config.write_text(
        "defaults:\n  - override /model: tiny_llama\n  - override /data: demo_prompts\n"
        "  - override /deepspeed: zero3_test\n"
        "run: {name: mine}\nreward_model: {path: outputs/tiny_rm/final, dtype: float32}\n"
        "ppo: {num_steps: 2, batch_size: 4, minibatch_size: 4, micro_batch_size: 2}\n"
        "rollout: {max_new_tokens: 8}\neval: {num_prompts: 2}\n"
    )
    done = run_rlhf("train-ppo", "conf=mine.yaml")
    assert done.returncode == 0, done.stderr
    first = metrics(tmp_path / "outputs/mine")[0]
    assert first["kl"] == 0
    assert first["approx_kl"] == pytest.approx(0, abs=1e-9)
    assert first["clipfrac/policy"] == 0
    check_use(run_all, tmp_path)


def test_ppo_on_one_rank_on_two_and_under_the_deepspeed_launcher(run_rlhf, tmp_path):
    """The same command line in three ways: the same metrics; the run folder holds all it should."""
    args = ["train-ppo", "conf=tiny", "ppo.num_epochs=2"]
    one = run_rlhf(*args, "run.name=one")
    assert one.returncode == 0, one.stderr
    assert one.stdout.count("\nstep ") == 4
    assert one.stderr == ""
    two = run_rlhf(*args, "run.name=two", "launch.num_gpus=2")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("\nstep ") == 4  # one rank speaks
    under_launcher(tmp_path, "deepspeed", "--num_gpus", "2", "--module", "rlhf_cli", *args, "run.name=launched")
    outputs = tmp_path / "outputs"
    assert_same_series(outputs / "one", outputs / "two")
    assert_same_series(outputs / "one", outputs / "launched")
    check_run_folder(outputs / "one")


def check_run_folder(folder: Path) -> None:
    assert set(json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])) == STEP_METRICS | {"step"}
    assert documented() >= STEP_METRICS | {"step"}
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {(s["stage"], s["mode"]) for s in samples} == {
        (stage, mode) for stage in ("before", "after") for mode in ("greedy", "sampled")
    }
    names = {
        ".lock",
        "config.yaml",
        "run.json",
        "status.json",
        "log.txt",
        "summary.json",
        "metrics.jsonl",
        "samples.jsonl",
        "rollouts.jsonl",
        "checks.json",
        "plan.json",
        "report.html",
        "tensorboard",
        "tracker_tensorboard.json",
        "checkpoints",
        "final",
    }
    assert {entry.name for entry in folder.iterdir()} == names
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("score")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("score")] == pytest.approx(
        [one["score"] for one in metrics(folder)]
    )
    assert sorted(entry.name for entry in (folder / "checkpoints").iterdir()) == ["latest", "step-2", "step-4"]
    check_policy(folder)
    in_fresh_process(
        "from transformers import AutoModelForSequenceClassification as M\n"
        f"m, info = M.from_pretrained({str(folder / 'final/value_model')!r}, output_loading_info=True)\n"
        "assert not info['missing_keys'] and all(p.numel() for p in m.parameters())\n"
    )
    assert not list((folder / "final").rglob("*.bin"))


def test_reward_model_on_two_ranks_under_torchrun(run_rlhf, tmp_path):
    args = ["train-rm", "conf=tiny", "data.eval=null", "train.micro_batch_size=3"]
    one = run_rlhf(*args, "run.name=one")
    assert one.returncode == 0, one.stderr
    under_launcher(tmp_path, "torchrun", "--nproc-per-node", "2", "-m", "rlhf_cli", *args, "run.name=two")
    assert_same_series(tmp_path / "outputs/one", tmp_path / "outputs/two")


def test_a_resumed_run_goes_on_bit_for_bit(run_rlhf, tmp_path):
    """Four steps at once, and its last two again from a checkpoint: equal metrics to the last digit, in bfloat16."""
    (tmp_path / "text.txt").write_text("Some text that the policy should not forget. " * 20)
    options = ["ppo.kl_target=0.3", "ppo.kl_horizon=50", "ppo.ema_decay=0.7", "ppo.value_warmup_steps=1"]
    text = ["pretrain.path=text.txt", "pretrain.max_tokens=40", "pretrain.batch_size=4"]
    dtypes = ["model.dtype=bfloat16", "reward_model.dtype=bfloat16"]
    args = ["train-ppo", "conf=tiny", "launch.num_gpus=2", *options, *text, *dtypes]
    assert run_rlhf(*args, "run.name=cut").returncode == 0
    cut, whole = tmp_path / "outputs/cut", tmp_path / "whole"
    shutil.copytree(cut, whole)
    for name in ("checkpoints/step-4", "final", "summary.json"):
        subprocess.run(["rm", "-r", str(cut / name)], check=True)
    (cut / "checkpoints/latest").write_text("step-2\n")
    done = run_rlhf(*args, "run.name=cut", "run.resume=true")
    assert done.returncode == 0, done.stderr
    assert "resumed after step 2" in done.stdout
    assert metrics(cut) == metrics(whole)
    assert (cut / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert len({record["kl_coef"] for record in metrics(cut)}) == 3  # the first step learns nothing of the policy
    for name in ("policy", "policy_ema", "value_model"):
        assert (cut / f"final/{name}/model.safetensors").read_bytes() == (
            whole / f"final/{name}/model.safetensors"
        ).read_bytes()
    assert (cut / "final/policy_ema/model.safetensors").read_bytes() != (
        cut / "final/policy/model.safetensors"
    ).read_bytes()
    command = json.loads((cut / "run.json").read_text())["command"]
    assert command == " ".join(["rlhf", *args, "run.name=cut"])


def test_a_second_run_of_the_same_name_is_refused_and_nothing_is_lost(run_rlhf, tmp_path):
    (tmp_path / "outputs/tiny").mkdir(parents=True)
    (tmp_path / "outputs/tiny/precious").write_text("x")
    done = run_rlhf("train-ppo", "conf=tiny", "launch.num_gpus=2")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "outputs/tiny/precious").read_text() == "x"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["reward_model=null"], "reward_model"),
        (["value_model.init=policy", "reward_model.from_config={model_type: t5}"], "reward_model must be "),
        (["rollout.max_new_tokens=2040"], "model has 2048 positions"),
        (["model.from_config={model_type: lama}"], "model.from_config"),
        (["model@reward_model=tiny_llama", "reward_model.tokenizer=gpt2"], "reward_model: no tokenizer in gpt2"),
        (["data.prompt_column=question"], "no column 'question'; there are: prompt, situation; set data.prompt_column"),
        (["data.max_prompt_tokens=3"], "nothing is left to train on"),
    ],
)
def test_wrong_input_is_one_line_exit_code_2_and_no_run_folder(args, message, run_rlhf, tmp_path):
    done = run_rlhf("train-ppo", "conf=tiny", *args)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_a_failing_rank_ends_the_others(run_rlhf):
    done = run_rlhf("train-ppo", "conf=tiny", "launch.num_gpus=2", "data.max_prompt_tokens=3", timeout=100)
    assert done.returncode == 2
    assert done.stderr.count("rlhf: error:") == 1


BFLOAT16 = ["model.dtype=bfloat16", "reward_model.dtype=bfloat16", "model.gradient_checkpointing=true"]


@pytest.mark.parametrize(("preset", "more"), [("zero3", BFLOAT16)])
def test_the_presets_for_gpus_on_two_ranks(preset, more, run_rlhf, tmp_path):
    """They make the same metrics as the preset that shards every parameter."""
    args = ["train-ppo", "conf=tiny", "ppo.num_steps=2", "eval.num_prompts=0", "launch.num_gpus=2", *more]
    for name in (preset, "zero3_test"):
        done = run_rlhf(*args, f"deepspeed={name}", f"run.name={name}")
        assert done.returncode == 0, done.stderr
    assert_same_series(tmp_path / "outputs" / preset, tmp_path / "outputs/zero3_test")


def test_another_architecture(run_rlhf, tmp_path):
    """Others, in `make test-faults`: GPT-2 has absolute positions, Qwen2 tied embeddings."""
    runs_on(run_rlhf, tmp_path, "tiny_gpt_neox")


def runs_on(run_rlhf, tmp_path, architecture):
    """The value model starts from the policy here."""
    words = [
        f"model={architecture}",
        f"model@reward_model={architecture}",
        "value_model.init=policy",
        "ppo.num_steps=2",
    ]
    done = run_rlhf("train-ppo", "conf=tiny", *words, "model.gradient_checkpointing=true")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "outputs/tiny")[0]["kl"] == 0
    check_policy(tmp_path / "outputs/tiny")
