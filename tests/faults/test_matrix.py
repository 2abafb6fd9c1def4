"""Every fault in every place: longer than `make test` has time for. `make test-faults`."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from rlhf_cli.engine.checkpoint_manifest import read_manifest, steps
from tests.e2e.processes import TINY, Started, assert_equal_runs, status
from tests.e2e.series import assert_same_series, metrics
from tests.e2e.test_faults import ends_for_want_of_finite_figures
from tests.e2e.test_train import runs_on

TWO = "launch.num_gpus=2"
LONG = [*TINY, "ppo.num_steps=12"]
FEW = [*LONG, "run.name=a", "data.train=few.jsonl"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    started = Started(folder, *LONG, TWO, "run.name=whole")
    assert started.end(120) == 0, started.text
    return folder / "outputs/whole"


def resume(folder, *more):
    started = Started(folder, *LONG, TWO, "run.name=a", "run.resume=true", *more)
    assert started.end(120) == 0, started.text
    return started.text


@pytest.mark.parametrize("whom", ["supervisor", "rank 0", "rank 1"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_every_signal_to_everyone(whom, number, whole, tmp_path):
    started = Started(tmp_path, *LONG, TWO, "run.name=a", "checkpoint.every_steps=0")
    started.wait_for("\nstep 2/")
    os.kill(started.parent.pid if whom == "supervisor" else started.rank(int(whom[-1])), number)
    assert started.end() == 75, started.text
    run = tmp_path / "outputs/a"
    assert len(steps(run / "checkpoints")) == 1
    assert status(run)["state"] == "stopped"
    resume(tmp_path)
    assert_equal_runs(run, whole)


@pytest.mark.parametrize("seed", range(5))
def test_kill_nine_at_any_time_loses_at_most_every_steps(seed, whole, tmp_path):
    draw = random.Random(seed)
    started = Started(tmp_path, *LONG, TWO, "run.name=a")
    started.wait_for("\nstep 2/")
    time.sleep(draw.uniform(0, 2.5))
    os.kill(draw.choice([started.rank(0), started.rank(1), started.parent.pid]), signal.SIGKILL)
    assert started.end() in (137, -9), started.text
    run = tmp_path / "outputs/a"
    logged = metrics(run)[-1]["step"] if (run / "metrics.jsonl").read_text().endswith("\n") else 0
    text = resume(tmp_path)
    resumed = int(text.partition("resumed after step ")[2].split()[0])
    assert logged - resumed <= 2
    assert_equal_runs(run, whole)


@pytest.fixture(scope="module")
def every_step(tmp_path_factory):
    """A run over 11 prompts in steps of 8, with a checkpoint after each step."""
    folder = tmp_path_factory.mktemp("every_step")
    (folder / "few.jsonl").write_text("".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(11)))
    started = Started(folder, *FEW, TWO, "checkpoint.every_steps=1", "checkpoint.keep_last=20")
    assert started.end(120) == 0, started.text
    return folder


@pytest.mark.parametrize("stop", [1, 2, 5, 11, 12])
def test_resume_at_every_boundary(stop, every_step, tmp_path):
    """The first step, where a pass over the prompts ends within a step, the last step but one, and the last."""
    shutil.copytree(every_step, tmp_path, dirs_exist_ok=True)
    (tmp_path / "outputs/a/summary.json").unlink()
    again = Started(tmp_path, *FEW, TWO, f"run.resume=outputs/a/checkpoints/step-{stop}")
    assert again.end(120) == 0, again.text
    assert f"resumed after step {stop}\n" in again.text
    assert_equal_runs(tmp_path / "outputs/a", every_step / "outputs/a")
    assert steps(tmp_path / "outputs/a/checkpoints")[-1] == 12


@pytest.mark.parametrize("preset", ["zero3", "zero3_offload"])
def test_resume_with_the_presets_for_gpus(preset, tmp_path):
    """Parameters that stay whole on every rank, and an optimizer in host memory, come back bit for bit."""
    args = ["train-ppo", "conf=tiny", f"deepspeed={preset}", "eval.num_prompts=2", "ppo.ema_decay=0.8", TWO]
    whole = Started(tmp_path, *args, "run.name=whole")
    assert whole.end(120) == 0, whole.text
    outputs = tmp_path / "outputs"
    shutil.copytree(outputs / "whole", outputs / "a")
    (outputs / "a/summary.json").unlink()
    again = Started(tmp_path, *args, "run.name=a", "run.resume=outputs/a/checkpoints/step-2")
    assert again.end(120) == 0, again.text
    assert_equal_runs(outputs / "a", outputs / "whole")


def test_changed_data_is_refused(every_step, tmp_path):
    """One row more: every later batch would be another one. No checkpoint is lost by the try."""
    shutil.copytree(every_step, tmp_path, dirs_exist_ok=True)
    (tmp_path / "outputs/a/summary.json").unlink()
    with (tmp_path / "few.jsonl").open("a") as file:
        file.write('{"prompt": "One more?"}\n')
    again = Started(tmp_path, *FEW, TWO, "run.resume=outputs/a/checkpoints/step-1")
    assert again.end() == 2, again.text
    assert steps(tmp_path / "outputs/a/checkpoints") == list(range(1, 13))
    assert "rlhf: error: data changed since this checkpoint was saved" in again.text


@pytest.mark.parametrize("which", ["policy/rank0-0.safetensors", "value_model/rank1-0.safetensors", "trainer.json"])
@pytest.mark.parametrize("how", ["truncated", "deleted", "flipped", "emptied", "swapped"])
def test_corruption_is_refused_by_both_ranks(which, how, whole, tmp_path):
    run = tmp_path / "outputs/a"
    shutil.copytree(whole, run)
    for name in ("summary.json", "final"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    newest = steps(run / "checkpoints")[-1]
    damage(run / f"checkpoints/step-{newest}/{which}", how)
    refused = Started(tmp_path, *LONG, TWO, "run.name=a", "run.resume=true")
    assert refused.end() == 5, refused.text
    assert f"outputs/a/checkpoints/step-{newest}/{which}: " in refused.text
    assert refused.text.count("rlhf: error: ") == 1
    assert f"continue from it with run.resume=outputs/a/checkpoints/step-{newest - 2}" in refused.text


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    match how:
        case "truncated":
            file.write_bytes(content[:-1])
        case "deleted":
            file.unlink()
        case "flipped":
            file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        case "emptied":
            file.write_bytes(b"")
        case "swapped":
            other = next(one for one in file.parent.parent.rglob("*-rank0.json") if one != file)
            file.write_bytes(other.read_bytes())


def launcher(name, *words):
    return (str(Path(sys.executable).with_name(name)), *words, "rlhf_cli")


TORCHRUN = launcher("torchrun", "--nproc-per-node", "2", "-m")
DEEPSPEED = launcher("deepspeed", "--num_gpus", "2", "--module")


@pytest.mark.parametrize(
    ("command", "whom", "code"),
    [
        (TORCHRUN, "rank", 1),
        (TORCHRUN, "launcher", 1),
        (DEEPSPEED, "rank", 75),
        (DEEPSPEED, "launcher", -signal.SIGTERM),
    ],
    ids=["torchrun-rank", "torchrun", "deepspeed-rank", "deepspeed"],
)
def test_other_launchers(command, whom, code, whole, tmp_path):
    """SIGTERM to a rank or to the launcher: whatever code it makes of it, all save, stop, and status.json says 75."""
    started = Started(tmp_path, *LONG, "run.name=a", "checkpoint.every_steps=0", command=command)
    started.wait_for("\nstep 2/")
    os.kill(started.rank(1) if whom == "rank" else started.parent.pid, signal.SIGTERM)
    assert started.end() == code, started.text
    run = tmp_path / "outputs/a"
    assert (status(run)["state"], status(run)["exit_code"]) == ("stopped", 75)
    assert len(steps(run / "checkpoints")) == 1
    resume(tmp_path)
    assert_equal_runs(run, whole)


@pytest.mark.parametrize("command", [TORCHRUN, DEEPSPEED], ids=["torchrun", "deepspeed"])
def test_killed_launchers_leave_no_ranks(command, tmp_path):
    """kill -9 of torchrun; of deepspeed's launch.py, which would leave its ranks running and end with 0."""
    started = Started(tmp_path, *LONG, "ppo.num_steps=500", "run.name=a", command=command)
    started.wait_for("\nstep 2/")
    mine = started.parent.pid if command == TORCHRUN else started.find(word="deepspeed.launcher.launch")
    os.kill(mine, signal.SIGKILL)
    started.end()
    for step in steps(tmp_path / "outputs/a/checkpoints"):
        read_manifest(tmp_path / f"outputs/a/checkpoints/step-{step}")


def test_a_second_signal_ends_at_once(tmp_path):
    big = ["ppo.num_steps=500", "ppo.batch_size=512", "ppo.minibatch_size=512", "rollout.max_new_tokens=64"]
    started = Started(tmp_path, *TINY, *big, TWO, "run.name=a")
    started.wait_for("evaluating")
    time.sleep(4)
    os.kill(started.parent.pid, signal.SIGINT)
    time.sleep(2.5)
    os.kill(started.parent.pid, signal.SIGINT)
    begun = time.monotonic()
    assert started.end() == 130, started.text
    assert time.monotonic() - begun < 5
    assert started.text.endswith("rlhf: error: a second SIGINT ended the run at once; nothing more was saved\n")


def test_a_rank_that_is_stopped_is_a_hang(tmp_path):
    """The other one waits launch.timeout_s, and no longer: exit code 8."""
    started = Started(tmp_path, *TINY, TWO, "run.name=a", "launch.timeout_s=15", "ppo.num_steps=500")
    started.wait_for("\nstep 3/")
    os.kill(started.rank(0), signal.SIGSTOP)
    assert started.end() == 8, started.text
    assert "rank 0 silent for " in started.text
    assert started.text.count("rlhf: error: no progress for 15 s (launch.timeout_s): rank 0 ") == 1
    assert status(tmp_path / "outputs/a")["exit_code"] == 8


def test_a_loss_that_is_not_finite_for_long_ends_the_run(tmp_path):
    """In step 3, whose four updates are enough."""
    ends_for_want_of_finite_figures(tmp_path, "nan-loss", last=2)


@pytest.mark.parametrize("architecture", ["tiny_gpt2", "tiny_qwen2"])
def test_architectures(architecture, run_rlhf, tmp_path):
    runs_on(run_rlhf, tmp_path, architecture)


def test_another_number_of_ranks_goes_on_with_the_same_series(tmp_path):
    """Two ranks, then one, then two: parameters, AdamW's means and the average of the weights are cut anew."""
    args = [*TINY, "run.name=a", "ppo.ema_decay=0.7", "checkpoint.every_steps=3"]
    expected = Started(tmp_path, *args, TWO, "run.name=whole")
    assert expected.end(120) == 0
    for stop, more in (("\nstep 3/", [TWO]), ("\nstep 5/", ["run.resume=true"])):
        started = Started(tmp_path, *args, *more)
        started.wait_for(stop)
        os.kill(started.parent.pid, signal.SIGTERM)
        assert started.end() == 75, started.text
    done = Started(tmp_path, *args, TWO, "run.resume=true")
    assert done.end(120) == 0, done.text
    assert_same_series(tmp_path / "outputs/a", tmp_path / "outputs/whole")
