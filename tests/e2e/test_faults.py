"""What a run does when something goes wrong: two real ranks, real signals, real kills. docs/reliability.md lists it."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from rlhf_cli.engine.checkpoint_manifest import check_hashes, find_checkpoint, read_manifest, steps
from tests.e2e.processes import TINY, Started, assert_equal_runs, status, with_fault
from tests.e2e.series import assert_same_series, metrics

TWO = "launch.num_gpus=2"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, on two ranks, that others are compared with."""
    folder = tmp_path_factory.mktemp("whole")
    started = Started(folder, *TINY, TWO, "run.name=whole")
    assert started.end(120) == 0, started.text
    return folder / "outputs/whole"


def resume(folder, run, *more):
    started = Started(folder, *TINY, f"run.name={run.name}", "run.resume=true", *more)
    assert started.end(120) == 0, started.text
    return started.text


@pytest.mark.parametrize(("whom", "number"), [("supervisor", signal.SIGTERM), ("rank 1", signal.SIGUSR1)])
def test_a_signal_to_anyone_saves_and_stops_all(whom, number, whole, tmp_path):
    """After the step that runs, on both ranks the same; exit code 75; what is resumed ends as if nothing had been."""
    started = Started(tmp_path, *TINY, TWO, "run.name=a", "checkpoint.every_steps=100")
    started.wait_for("\nstep 1/")
    pid = started.parent.pid if whom == "supervisor" else started.rank(int(whom[-1]))  # looking takes a while
    started.wait_for("\nstep 3/")
    os.kill(pid, number)
    assert started.end() == 75, started.text
    run = tmp_path / "outputs/a"
    (saved,) = steps(run / "checkpoints")
    assert 3 <= saved < 8
    assert metrics(run)[-1]["step"] == saved
    said = f"rlhf: stopped by {number.name} after step {saved}, checkpoint saved; continue with run.resume=true"
    assert started.text.splitlines()[-1] == said
    assert started.text.count("rlhf: ") == 1
    assert (status(run)["state"], status(run)["exit_code"], status(run)["step"]) == ("stopped", 75, saved)
    text = resume(tmp_path, run, TWO, "checkpoint.every_steps=100")
    assert f"resumed after step {saved}\n" in text
    assert_equal_runs(run, whole)


def test_a_killed_rank_ends_the_run_and_is_named(whole, tmp_path):
    """Exit code 128 + 9; what was logged after the last checkpoint is logged anew, and once."""
    started = Started(tmp_path, *TINY, TWO, "run.name=a")
    started.wait_for("\nstep 5/")
    pid = started.rank(1)
    os.kill(pid, signal.SIGKILL)
    assert started.end() == 137, started.text
    run = tmp_path / "outputs/a"
    assert f"rank 1 (process {pid}) was killed by SIGKILL\nrlhf: continue from the last checkpoint" in started.text
    assert "Traceback" not in started.text
    assert status(run)["state"] == "failed"
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "sco')  # a line that a killed process had begun
    text = resume(tmp_path, run, TWO)
    assert "resumed after step 4\n" in text or "resumed after step 6\n" in text
    assert_equal_runs(run, whole)


def test_no_rank_outlives_the_supervisor(tmp_path):
    """Killed, it cannot end its ranks; the kernel does."""
    started = Started(tmp_path, *TINY, TWO, "run.name=a", "ppo.num_steps=9999")
    started.wait_for("\nstep 2/")
    assert started.rank(0) != started.rank(1)
    os.kill(started.parent.pid, signal.SIGKILL)
    assert started.end() == -9


def test_a_rank_killed_while_it_saves_leaves_the_last_checkpoint(whole, tmp_path):
    done = with_fault(tmp_path, "die-while-writing", 1, *TINY, "run.name=a")
    assert done[1].returncode == -9
    assert done[0].returncode == 1
    assert "lost another rank, which ended without a message" in done[0].stderr
    run = tmp_path / "outputs/a"
    assert sorted(entry.name for entry in (run / "checkpoints").iterdir()) == ["latest", "step-2"]
    folder, manifest = find_checkpoint(run, True)
    assert folder.name == "step-2"
    check_hashes(folder, manifest)
    resume(tmp_path, run, TWO)
    assert_equal_runs(run, whole)
    assert sorted(entry.name for entry in (run / "checkpoints").iterdir()) == ["latest", "step-6", "step-8"]


def test_a_rank_that_fails_alone_is_heard_once_and_all_end_with_its_code(tmp_path):
    done = with_fault(tmp_path, "raise", 1, *TINY, "run.name=a")
    assert [one.returncode for one in done] == [1, 1]
    errors = done[0].stderr + done[1].stderr
    assert errors.count("Traceback") == 1
    assert errors.startswith("rlhf: error: rank 1 failed in rollout of step 3:\n")
    assert "LookupError: row 7 has gone" in errors
    ended = status(tmp_path / "outputs/a")
    assert (ended["state"], ended["rank"], ended["reason"], ended["step"]) == ("failed", 1, "row 7 has gone", 2)


def test_what_fails_on_rank_0_alone_is_told_by_rank_0(tmp_path):
    """Rank 1 hears of it in a collective, and lets the one speak that has the traceback; all steps are saved."""
    done = with_fault(tmp_path, "export", 0, *TINY, "run.name=a", "checkpoint.every_steps=100")
    assert [one.returncode for one in done] == [1, 1]
    assert done[1].stderr == ""
    assert done[0].stderr.startswith("rlhf: error: rank 0 failed in export of step 8:\nTraceback")
    assert "TypeError: the export broke" in done[0].stderr
    assert steps(tmp_path / "outputs/a/checkpoints") == [8]
    assert not (tmp_path / "outputs/a/final").exists()


def test_too_little_room_is_refused_before_anything_is_written(tmp_path):
    """Three checkpoints and the exported weights, with what the disk has, and no run folder."""
    (done,) = with_fault(tmp_path, "no-room", 0, *TINY, "run.name=a", num_ranks=1)
    assert done.returncode == 9, done.stderr
    assert done.stderr.startswith("rlhf: error: the run (3 checkpoints of ")
    assert done.stderr.endswith(" outputs/a has 4.00 KiB (4096 bytes) free. Free some space or set run.output_dir\n")
    assert not (tmp_path / "outputs").exists()


def test_a_hang_is_ended_and_says_which_rank_stood_where(tmp_path):
    """A rank that waits for ever: exit code 8 after launch.timeout_s."""
    first, second = with_fault(tmp_path, "hang", 1, *TINY, "run.name=a", "launch.timeout_s=15")
    assert (first.returncode, second.returncode) == (8, 8)
    text = first.stderr + second.stderr
    assert "rank 1 in rollout of step 3 for 1" in text
    assert text.count("rlhf: error: no progress for 15 s (launch.timeout_s): rank 0 ") == 1
    assert status(tmp_path / "outputs/a")["exit_code"] == 8


def test_a_score_that_is_not_finite_is_skipped_and_counted(tmp_path):
    """On rank 1, in step 2 alone: nothing is learnt there, the others learn as ever."""
    done = with_fault(tmp_path, "one-nan-score", 1, *TINY, "run.name=a")
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    assert "warning: step 2 is skipped: these prompts have numbers that are not finite: " in done[0].stdout
    records = metrics(tmp_path / "outputs/a")
    assert [record["skipped_updates"] for record in records] == [0, 4, 0, 0, 0, 0, 0, 0]
    assert records[1]["nonfinite_responses"] == 4
    assert records[2]["kl"] != 0


def test_nothing_finite_for_long_ends_the_run(tmp_path):
    """Scores from step 3 on."""
    ends_for_want_of_finite_figures(tmp_path, "nan-scores", last=5)


def ends_for_want_of_finite_figures(tmp_path, fault, last):
    done = with_fault(tmp_path, fault, 1, *TINY, "run.name=a", "optim.max_skipped_updates=2")
    assert [one.returncode for one in done] == [6, 6], done[0].stderr
    run = tmp_path / "outputs/a"
    folder, manifest = find_checkpoint(run, True)
    check_hashes(folder, manifest)
    assert manifest.step == last
    assert status(run)["exit_code"] == 6


def test_a_full_disk_is_named_and_the_last_checkpoint_stands(whole, tmp_path):
    started = Started(tmp_path, *TINY, "run.name=a")
    started.wait_for("\nstep 3/")
    os.kill(started.parent.pid, signal.SIGTERM)
    assert started.end() == 75
    run = tmp_path / "outputs/a"
    before = find_checkpoint(run, True)
    (done,) = with_fault(tmp_path, "no-space", 0, *TINY, "run.name=a", "run.resume=true", num_ranks=1)
    assert done.returncode == 9, done.stderr
    assert "cannot write outputs/a/checkpoints/.step-" in done.stderr
    assert "earlier checkpoints are intact" in done.stderr
    assert find_checkpoint(run, True) == before
    assert not list((run / "checkpoints").glob(".step-*"))
    resume(tmp_path, run)
    assert_same_series(run, whole)


def test_out_of_memory_names_the_settings_that_save_by_plan(tmp_path):
    done = with_fault(tmp_path, "out-of-memory", 1, *TINY, "run.name=a")
    assert [one.returncode for one in done] == [7, 7]
    text = done[0].stderr + done[1].stderr
    assert text.startswith("rlhf: error: rank 1, in rollout of step 3: CUDA out of memory. Tried to allocate 2.00 GiB")
    head, *lines = text.splitlines()[1:]
    assert head == "any of these settings saves memory; apply one and continue with run.resume=true:"
    options = [line.split()[0] for line in lines]
    assert {"ppo.micro_batch_size=1", "model.gradient_checkpointing=true"} <= set(options), text
    assert all(" saves about " in line for line in lines)
    assert "Traceback" not in text


def test_a_guard_stops_after_a_checkpoint(run_rlhf, tmp_path):
    """A KL limit that the tiny run passes at once."""
    args = [*TINY, "guard.kl_limit=1e-5", "guard.patience=2"]
    done = run_rlhf(*args)
    assert done.returncode == 10, done.stderr
    run = tmp_path / "outputs/tiny"
    assert "rlhf: error: a guard stopped the run at step 3, checkpoint saved: kl " in done.stderr
    assert steps(run / "checkpoints") == [2, 3]
    assert (status(run)["state"], status(run)["exit_code"]) == ("stopped", 10)
    done = run_rlhf(*args, "run.resume=true", "guard.action=warn")
    assert done.returncode == 0, done.stderr
    assert "warning: kl " in done.stdout


def test_reward_model_runs_stop_and_go_on_too(run_rlhf, tmp_path):
    """Evaluations and the best checkpoint included."""
    args = ["train-rm", "conf=tiny", "train.num_steps=12", "train.eval_every_steps=2", "checkpoint.every_steps=2"]
    best = ["checkpoint.best_metric=eval/loss", "checkpoint.best_is_lowest=true", "checkpoint.keep_last=1"]
    whole = Started(tmp_path, *args, *best, TWO, "run.name=whole")
    started = Started(tmp_path, *args, *best, TWO, "run.name=a")
    started.wait_for("\nstep 3/")
    os.kill(started.rank(0), signal.SIGKILL)
    assert started.end() == 137
    assert whole.end(120) == 0, whole.text
    again = Started(tmp_path, *args, *best, TWO, "run.name=a", "run.resume=true")
    assert again.end(120) == 0, again.text
    run, whole = tmp_path / "outputs/a", tmp_path / "outputs/whole"
    assert metrics(run) == metrics(whole)
    assert (run / "checkpoints/best").read_text() == (whole / "checkpoints/best").read_text()
    assert (run / "final/model.safetensors").read_bytes() == (whole / "final/model.safetensors").read_bytes()
    assert len(steps(run / "checkpoints")) <= 2
    summary, of_whole = (json.loads((folder / "summary.json").read_text()) for folder in (run, whole))
    for each in (summary, of_whole):
        del each["memory"]["measured_gib"]  # the resident size of a process, which no two share
    assert summary == of_whole


def test_a_changed_byte_is_refused_on_both_ranks_in_seconds(whole, tmp_path):
    """And the message offers a checkpoint that is whole."""
    run = tmp_path / "outputs/a"
    started = Started(tmp_path, *TINY, TWO, "run.name=a")
    started.wait_for("\nstep 5/")
    os.kill(started.parent.pid, signal.SIGKILL)
    started.end()
    older, newest = steps(run / "checkpoints")[-2:]
    file = run / f"checkpoints/step-{newest}/value_model/rank1-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    begun = time.monotonic()
    refused = Started(tmp_path, *TINY, TWO, "run.name=a", "run.resume=true")
    assert refused.end() == 5, refused.text
    assert time.monotonic() - begun < 30  # most of it imports
    (line,) = refused.text.splitlines()
    assert f"{file.relative_to(tmp_path)}: got SHA-256 " in line
    way_out = f"run.resume=outputs/a/checkpoints/step-{older}"
    assert line.endswith(way_out)
    again = Started(tmp_path, *TINY, TWO, "run.name=a", way_out)
    assert again.end(120) == 0, again.text
    assert_equal_runs(run, whole)
    assert all(read_manifest(run / f"checkpoints/step-{step}") for step in steps(run / "checkpoints"))


def test_one_run_folder_has_one_run(tmp_path):
    """A second process is refused at once; a finished run is left as it is; other options are refused and shown."""
    first = Started(tmp_path, *TINY, "run.name=a", "checkpoint.every_steps=1")
    first.wait_for("\nstep 2/")
    second = Started(tmp_path, *TINY, "run.name=a", "run.resume=true", "checkpoint.every_steps=1")
    assert second.end() == 2
    assert f"outputs/a is being written by process {first.parent.pid} on " in second.text
    other = Started(tmp_path, *TINY, "run.name=a", "run.resume=true", "ppo.kl_coef=0.2")
    assert other.end() == 2
    assert "was saved with other options: ppo.kl_coef: 0.05 -> 0.2; only these may change: " in other.text
    assert first.end(120) == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "outputs/a").rglob("*")}
    for more in ([], ["run.resume=true"]):
        again = Started(tmp_path, *TINY, "run.name=a", *more)
        assert again.end() == 0
        assert again.text == "outputs/a has already finished; set another run.name to train again\n"
    changed = Started(tmp_path, *TINY, "run.name=a", "optim.learning_rate=0.5")
    assert changed.end() == 2
    assert "optim.learning_rate: 0.001 -> 0.5" in changed.text
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "outputs/a").rglob("*")}


@pytest.mark.parametrize("wanted", ["true", "outputs/other/checkpoints/step-2", "outputs/a/checkpoints/step-9"])
def test_what_cannot_be_resumed_is_never_begun_anew(wanted, run_rlhf, tmp_path):
    (tmp_path / "outputs/a/checkpoints").mkdir(parents=True)
    done = run_rlhf(*TINY, "run.name=a", f"run.resume={wanted}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"rlhf: error: run.resume={'True' if wanted == 'true' else wanted}: ")
    assert not (tmp_path / "outputs/a/metrics.jsonl").exists()


def test_secrets_stay_out_of_run_folder_and_output(run_rlhf, tmp_path):
    """One in the environment that the configuration reads, one in an option whose name says what it is."""
    (tmp_path / "mine.yaml").write_text(
        "defaults:\n  - tiny\ndata: {system_prompt: '${oc.env:CANARY_STYLE}'}\n"
        "deepspeed: {tensorboard: {enabled: false, job_name: '${oc.env:CANARY}'}}\n"
    )
    words = ["train-ppo", "conf=mine.yaml", "ppo.num_steps=1", "run.name=a", "check.num_prompts=0"]
    more = ["+deepspeed.my_api_key=canary-9c2f", "+deepspeed.mine={enabled: false, auth_token: canary-77ab}"]
    wrong = run_rlhf(*words, "+deepspeed.comms_logger={auth_token: canary-77ab}", CANARY="x", CANARY_STYLE="x")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("rlhf: error: deepspeed: CommsLoggerConfig does not accept 'auth_token'")
    assert "canary" not in wrong.stdout + wrong.stderr
    done = run_rlhf(*words, *more, CANARY="canary-51de", CANARY_STYLE="Be kind.", HF_TOKEN="canary-40aa")
    assert done.returncode == 0, done.stderr
    assert "canary" not in done.stdout + done.stderr
    found = [file for file in tmp_path.rglob("*") if file.is_file() and b"canary-" in file.read_bytes()]
    assert found == []
    assert "${oc.env:CANARY}" in (tmp_path / "outputs/a/config.yaml").read_text()
