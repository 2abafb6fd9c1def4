"""A run folder has one writer, complete lines, and no secrets."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from rlhf_cli.config.errors import DiskError, InputError
from rlhf_cli.config.sections import RunConfig
from rlhf_cli.report.run_dir import LOCK, RunDir, is_finished, lock, require_unlocked, run_folder
from tests.conftest import REPOSITORY, child_environment


def opened(tmp_path, resume=False, args=(), config="run: {}\n"):
    return RunDir(RunConfig(name="a", output_dir=str(tmp_path), resume=resume), "train-ppo", list(args), config, 1)


@pytest.fixture
def run_dir(tmp_path):
    return opened(tmp_path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


HOLDER = """
import sys
from rlhf_cli.config.sections import RunConfig
from rlhf_cli.report.run_dir import RunDir
held = RunDir(RunConfig(name="a", output_dir=sys.argv[1]), "train-ppo", [], "", 1)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes to the folder `a`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=REPOSITORY,
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path, holder):
    owner = f"process {holder.pid} on {os.uname().nodename}"
    message = f"{tmp_path}/a is being written by {owner}; wait until it ends, or choose another run.name"
    for attempt in (lambda: opened(tmp_path, resume=True), lambda: require_unlocked(tmp_path / "a")):
        with pytest.raises(InputError) as caught:
            attempt()
        assert str(caught.value) == message
    assert (tmp_path / "a" / LOCK).read_text() == f"{owner}\n"  # who was refused has not put its name there
    assert not (tmp_path / "a" / "resumes.jsonl").exists()


def test_a_killed_process_holds_no_lock(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    require_unlocked(tmp_path / "a")
    opened(tmp_path, resume=True)
    assert (tmp_path / "a" / LOCK).read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"


def test_the_lock_is_respected_before_its_owner_has_written_its_name(tmp_path):
    """The owner has the lock, but has not written its name yet."""
    held = os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="is being written by another process; wait until"):
        lock(tmp_path)
    os.close(held)
    os.close(lock(tmp_path))


def test_a_longer_name_of_an_earlier_owner_is_overwritten(tmp_path):
    (tmp_path / LOCK).write_text("process 123456789 on a-very-long-name-of-a-machine.example.org\n")
    os.close(lock(tmp_path))
    assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"


def test_a_folder_without_a_writer_is_unlocked(tmp_path):
    require_unlocked(tmp_path)
    assert not (tmp_path / LOCK).exists()
    for _ in range(3):
        os.close(lock(tmp_path))
        require_unlocked(tmp_path)


def test_a_file_system_without_locks_is_not_reported_as_another_process(tmp_path, monkeypatch):
    """Lustre mounted without flock, NFS without its lock server."""

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    try:
        os.close(lock(tmp_path))
    except InputError as error:
        if "being written by" in str(error):
            pytest.fail(str(error))


def test_resuming_opens_the_folder_and_records_it_in_a_separate_file(tmp_path):
    first = opened(tmp_path, args=["conf=tiny"], config="a: 1\n")
    os.close(first._lock)
    again = opened(tmp_path, resume=True, args=["conf=tiny", "run.resume=true"], config="a: 2\n")
    os.close(again._lock)
    opened(tmp_path, resume=str(tmp_path / "a" / "checkpoints" / "step-2"))
    assert (first.folder / "config.yaml").read_text() == "a: 1\n"
    assert json.loads((first.folder / "run.json").read_text())["command"] == "rlhf train-ppo conf=tiny"
    commands = [record["command"] for record in lines(first.folder / "resumes.jsonl")]
    assert commands == ["rlhf train-ppo conf=tiny run.resume=true", "rlhf train-ppo"]


def test_the_folder_has_the_name_of_the_run(tmp_path):
    run = RunConfig(name="a", output_dir=str(tmp_path))
    assert run_folder(run) == tmp_path / "a"
    assert not is_finished(run_folder(run))
    opened(tmp_path).write_json("summary.json", {"steps": 4})
    assert is_finished(run_folder(run))


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        opened(tmp_path / "file")
    assert str(caught.value) == f"{tmp_path}/file/a: cannot create the run folder: Not a directory"


def test_no_secret_is_in_any_file_of_the_folder(tmp_path):
    words = ["+deepspeed.comet.api_key=hunter2", "+deepspeed.a={token: hunter2}", "run.seed=3"]
    first = opened(tmp_path, args=words)
    os.close(first._lock)
    opened(tmp_path, resume=True, args=words)
    for path in first.folder.iterdir():
        assert "hunter2" not in path.read_text(), path
    assert "api_key=<hidden>" in (first.folder / "run.json").read_text()
    assert "run.seed=3" in (first.folder / "resumes.jsonl").read_text()


TORN = [
    "",
    '{"step": 3',
    '{"step": 3, "loss": 0.5}',
    '{"step": 3, "text": "caf\u00e9'.encode()[:-1].decode("latin-1"),
    "\x00" * 30,
]


@pytest.mark.parametrize("torn", TORN)
def test_an_incomplete_last_line_is_not_a_record(run_dir, torn):
    """Also if only its line end is missing: appended text would be on the same line."""
    for step in (1, 2):
        run_dir.append("metrics.jsonl", {"step": step})
    file = run_dir.folder / "metrics.jsonl"
    file.write_bytes(file.read_bytes() + torn.encode("latin-1"))
    assert list(run_dir.lines("metrics.jsonl")) == [{"step": 1}, {"step": 2}]
    run_dir.forget_after(9, 2)
    run_dir.append("metrics.jsonl", {"step": 3})
    assert lines(file) == [{"step": 1}, {"step": 2}, {"step": 3}]


@pytest.mark.parametrize("torn", ['{"stage": "before", "te', "\x00" * 20])
def test_an_incomplete_sample_is_not_a_record(run_dir, torn):
    run_dir.append("samples.jsonl", {"stage": "before", "text": "a"})
    with (run_dir.folder / "samples.jsonl").open("a") as file:
        file.write(torn)
    run_dir.forget_after(9, 2)
    run_dir.append("samples.jsonl", {"stage": "after", "text": "b"})
    assert [record["stage"] for record in lines(run_dir.folder / "samples.jsonl")] == ["before", "after"]


def test_text_with_every_kind_of_line_end_is_one_line(run_dir):
    texts = ["a\nb", "a\r\nb", "a\u2028b\u2029c\x85d\x0be\x0cf", "\u00e9\U0001f600", '"\\']
    for text in texts:
        run_dir.append("samples.jsonl", {"stage": "before", "text": text})
    assert [record["text"] for record in run_dir.lines("samples.jsonl")] == texts
    run_dir.forget_after(9, 0)
    assert [record["text"] for record in run_dir.lines("samples.jsonl")] == texts


def test_records_that_are_written_again_are_removed(run_dir):
    """Records logged after the checkpoint, whatever their step, and responses after training."""
    for step in (1, 2, 2, 3, 3):
        run_dir.append("metrics.jsonl", {"step": step})
    for stage in ("before", "after", "before"):
        run_dir.append("samples.jsonl", {"stage": stage})
    run_dir.forget_after(9, 4)
    assert list(run_dir.lines("metrics.jsonl")) == [{"step": 1}, {"step": 2}, {"step": 2}, {"step": 3}]
    run_dir.forget_after(9, 9)
    assert run_dir.sync() == 4
    run_dir.forget_after(9, 2)
    assert list(run_dir.lines("metrics.jsonl")) == [{"step": 1}, {"step": 2}]
    assert list(run_dir.lines("samples.jsonl")) == [{"stage": "before"}, {"stage": "before"}]
    run_dir.forget_after(9, 0)
    assert list(run_dir.lines("metrics.jsonl")) == []


def test_other_records_of_later_steps_are_removed(run_dir):
    """Samples, rollouts and events up to the step stay, and so do samples without a step, from old versions."""
    for step in (1, 2, 3):
        run_dir.append("rollouts.jsonl", {"step": step})
        run_dir.append("events.jsonl", {"step": step, "kind": "guard"})
        run_dir.append("samples.jsonl", {"stage": "during", "step": step})
    run_dir.append("samples.jsonl", {"stage": "before"})
    run_dir.forget_after(2, 9)
    for name in ("rollouts.jsonl", "events.jsonl"):
        assert [record["step"] for record in run_dir.lines(name)] == [1, 2]
    assert [record.get("step") for record in run_dir.lines("samples.jsonl")] == [1, 2, None]


def test_removing_records_creates_no_file(run_dir):
    run_dir.forget_after(9, 3)
    assert list(run_dir.lines("metrics.jsonl")) == []
    assert not list(run_dir.folder.glob("*.jsonl"))


def test_numbers_keep_every_digit_when_lines_are_rewritten(run_dir):
    record = {"step": 1, "a": 0.1 + 0.2, "b": 1e-300, "c": 2**60, "d": -0.0}
    run_dir.append("metrics.jsonl", record)
    content = (run_dir.folder / "metrics.jsonl").read_bytes()
    run_dir.forget_after(9, 1)
    assert (run_dir.folder / "metrics.jsonl").read_bytes() == content


def test_a_summary_is_strict_json(run_dir):
    """NaN is not JSON at any depth."""
    nan, inf = float("nan"), float("inf")
    record = {"after": {"loss": nan, "list": [inf, 1.0, [-inf], {"a": nan}]}, "steps": 4}
    run_dir.write_json("summary.json", record)
    run_dir.append("metrics.jsonl", record)

    def refuse(word):
        raise AssertionError(word)

    for name in ("summary.json", "metrics.jsonl"):
        read = json.loads((run_dir.folder / name).read_text(), parse_constant=refuse)
        assert read == {"after": {"loss": None, "list": [None, 1.0, [None], {"a": None}]}, "steps": 4}


@pytest.mark.parametrize("act", ["append", "write_json"])
def test_a_full_disk_is_reported_with_the_file_and_the_bytes(run_dir, monkeypatch, act):
    """`{"a": 1}` and its line end are 9 bytes; write_json counts the 8 of Python's notation."""
    run_dir.append("x.json", {"a": 1})

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(DiskError) as caught:
        getattr(run_dir, act)("x.json", {"a": 1})
    number = {"append": 9, "write_json": 8}[act]
    assert str(caught.value).startswith(f"cannot write {run_dir.folder}/x.json ({number} bytes, ")
    assert "No space left on device; earlier checkpoints are intact" in str(caught.value)
    monkeypatch.undo()
    assert (run_dir.folder / "x.json").read_text() == '{"a": 1}\n'


def test_sync_flushes_the_logged_records(run_dir, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    assert run_dir.sync() == 0
    assert synced == []
    for name in ("metrics.jsonl", "samples.jsonl", "resumes.jsonl"):
        run_dir.append(name, {"step": 1})
    assert run_dir.sync() == 1
    assert synced == [f"{run_dir.folder}/{name}" for name in ("metrics.jsonl", "samples.jsonl")]


def test_only_complete_records_are_counted(run_dir):
    for step in (1, 1, 2):
        run_dir.append("metrics.jsonl", {"step": step})
    with (run_dir.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')
    assert run_dir.sync() == 3


@pytest.mark.parametrize("name", ["events.jsonl", "metrics.jsonl", "rollouts.jsonl"])
def test_an_incomplete_line_is_removed_before_a_resumed_run_appends(tmp_path, name):
    """Warnings of the setup are written before anything is read."""
    first = opened(tmp_path)
    first.append(name, {"step": 1})
    with (first.folder / name).open("a") as file:
        file.write('{"step": 2, "te')
    os.close(first._lock)
    again = opened(tmp_path, resume=True)
    again.append(name, {"step": 3})
    assert list(again.lines(name)) == [{"step": 1}, {"step": 3}]
