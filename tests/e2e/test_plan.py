"""The plan and real runs: presets on the CPU with small models, and planned against measured memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, child_environment
from tests.e2e.series import metrics

SMALL_RM = ["model=tiny_llama", "train.num_steps=2", "train.batch_size=8", "train.num_calibration_pairs=8"]
SMALL_RM += ["data.train=pairs.jsonl", "data.eval_fraction=0", "train.eval_every_steps=0"]
SMALL_PPO = ["model=tiny_llama", "ppo.num_steps=2", "ppo.batch_size=8", "ppo.minibatch_size=4", "eval.num_prompts=0"]
SMALL_PPO += ["rollout.max_new_tokens=8", "data.train=pairs.jsonl", "data.eval_fraction=0"]


def write_pairs(folder: Path) -> None:
    rows = [{"prompt": f"question {n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(16)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("gpus", [2, 4])
def test_a_preset_runs_on_the_cpu_with_small_models(run_rlhf, tmp_path, gpus):
    """Train its reward model, then run its PPO, with its DeepSpeed options, on a gloo rank per GPU."""
    write_pairs(tmp_path)
    reward = run_rlhf("train-rm", f"conf=rm_7b_{gpus}xa100", *SMALL_RM)
    assert reward.returncode == 0, reward.stderr
    result = run_rlhf("train-ppo", f"conf=ppo_7b_{gpus}xa100", *SMALL_PPO)
    assert result.returncode == 0, result.stderr
    assert f"prompts per step: 8 = {gpus} ranks x {8 // gpus}, one response each" in result.stdout
    run = tmp_path / f"outputs/ppo_7b_{gpus}xa100"
    assert len([record for record in metrics(run) if "score" in record]) == 2
    assert (run / "final/policy/model.safetensors").exists()


def test_a_preset_for_one_gpu_runs_on_the_cpu(run_rlhf, tmp_path):
    write_pairs(tmp_path)
    words = ["reward_model.path=null", "model@reward_model=tiny_llama"]
    result = run_rlhf("train-ppo", "conf=ppo_1b_1xa100", *SMALL_PPO, *words)
    assert result.returncode == 0, result.stderr


def test_a_run_reports_planned_and_measured_memory(run_rlhf, tmp_path):
    """Resident memory includes libraries, whose size differs: hence the wide bounds."""
    result = run_rlhf("train-ppo", "conf=tiny")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "micro-batches per rank and minibatch: 2 x 2 responses; gradients are accumulated over 2" in lines
    assert any(line.startswith("memory plan: fits: ") for line in lines)
    assert any(line.startswith("peak memory: ") and line.endswith("GiB planned") for line in lines)
    figures = json.loads((tmp_path / "outputs/tiny/summary.json").read_text())["memory"]
    assert 0.3 < figures["planned_gib"] / figures["measured_gib"] < 2
    lines = (tmp_path / "outputs/tiny/metrics.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        for phase in ("rollout", "score", "update"):
            assert 0 < record[f"memory/{phase}_gib"] <= record["memory/peak_gib"]


@pytest.mark.parametrize("command", ["train-ppo", "train-rm"])
def test_a_run_that_cannot_fit_is_refused_before_its_models_are_loaded(run_rlhf, tmp_path, command):
    """3000 layers of width 4096 fit no disk at 12 bytes per weight, and no memory at 2."""
    wide = ["model.from_config.hidden_size=4096", "model.from_config.intermediate_size=100000"]
    wide += ["model.from_config.num_hidden_layers=3000"]
    refused = run_rlhf(command, "conf=tiny", *wide, "plan.on_misfit=error")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("rlhf: error: the memory plan does not fit this machine: host memory: ")
    assert "disk: " in line
    assert "run `rlhf plan` with the same options for advice" in line
    assert not (tmp_path / "outputs").exists()


def test_a_run_that_does_not_fit_warns_and_continues(run_rlhf, tmp_path):
    """A hundred million checkpoints of a tiny model fit no disk."""
    words = ["checkpoint.every_steps=1", "checkpoint.keep_last=100000000", "ppo.num_steps=100000000"]
    result = run_rlhf("check", "train-ppo", "conf=tiny", *words)
    assert result.returncode == 0, result.stderr
    assert "warning: the memory plan does not fit this machine: disk: " in result.stdout
    silent = run_rlhf("check", "train-ppo", "conf=tiny", *words, "plan.on_misfit=ignore")
    assert "does not fit" not in silent.stdout


def test_a_plan_imports_no_deepspeed():
    """Importing it takes seconds."""
    program = (
        "import sys; from rlhf_cli.cli import main; "
        "main(['plan', 'train-ppo', 'conf=tiny', 'plan.gpu_memory=8GiB']); print('deepspeed' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_plan_and_reality_agree(tmp_path):
    """The benchmark's first case must be within 10 % at the peak; otherwise it fails."""
    words = [
        sys.executable,
        str(REPOSITORY / "scripts/bench_memory.py"),
        "--quick",
        "--out",
        str(tmp_path / "found.json"),
    ]
    done = subprocess.run(words, env=child_environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert abs(found["off"]) < 0.1
    for phase in ("load", "rollout", "score", "update", "save"):
        assert found["planned"][phase] == pytest.approx(found["measured"][phase], rel=0.1)


SRUN = """\
#!/usr/bin/env python3
import os, subprocess, sys
count = 2
for_all = {"SLURM_NTASKS": str(count), "SLURM_NTASKS_PER_NODE": str(count)}
tasks = [subprocess.Popen(sys.argv[1:], env={**os.environ, **for_all, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)})
         for n in range(count)]
sys.exit(max(task.wait() for task in tasks))
"""


def test_the_slurm_script_of_the_docs_runs(tmp_path):
    """Use an srun that starts two tasks here, and a scontrol that knows this machine."""
    page = (REPOSITORY / "docs/multi-gpu.md").read_text("utf-8")
    script = page.partition("```text\n#!/bin/bash\n")[2].partition("```")[0]
    real = "conf=ppo_7b_4xa100 model=pretrained model.path=/models/7b"
    assert real in script
    script = script.replace(real, "conf=tiny ppo.num_steps=1 eval.num_prompts=0 check.num_prompts=0")
    (tmp_path / "job.sh").write_text(f"#!/bin/bash\n{script}")
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho 127.0.0.1\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = child_environment(SLURM_CPUS_PER_TASK="1", SLURM_JOB_NODELIST="here")
    environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
    words = ["bash", str(tmp_path / "job.sh")]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "prompts per step: 8 = 2 ranks x 4, one response each" in done.stdout
