"""status.json says how a run stands, also when nobody was left to say it."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlhf_cli.system.run_status import STATUS, State, read_status, write_status


def change(folder, **values):
    record = json.loads((folder / STATUS).read_text())
    (folder / STATUS).write_text(json.dumps({**record, **values}))


def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("state", State)
def test_what_was_written_is_read(tmp_path, state):
    write_status(tmp_path, state, 7, exit_code=6, reason="because \u00e9", rank=1, phase="update")
    record = read_status(tmp_path)
    when = record.pop("time")
    assert record == {
        "state": state.name,
        "step": 7,
        "exit_code": 6,
        "reason": "because \u00e9",
        "rank": 1,
        "phase": "update",
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    assert abs(time.mktime(time.strptime(when[:19], "%Y-%m-%dT%H:%M:%S")) - time.time()) < 60


def test_the_states_are_four():
    assert [state.value for state in State] == ["running", "finished", "stopped", "failed"]


def test_a_later_status_replaces_the_first_and_leaves_nothing_else(tmp_path):
    write_status(tmp_path, State.running, 1, reason="x")
    write_status(tmp_path, State.finished, 4)
    assert read_status(tmp_path)["step"] == 4
    assert "reason" not in read_status(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]


def test_who_reads_while_it_is_written_finds_the_old_or_the_new(tmp_path):
    write_status(tmp_path, State.running, 0)

    def write():
        for step in range(150):
            write_status(tmp_path, State.running, step, reason="x" * 1000 * (step % 7))

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        seen = []
        while not writing.done():
            seen.append(read_status(tmp_path)["step"])
        writing.result()
    assert seen == sorted(seen)


def test_a_run_whose_process_is_gone_was_killed(tmp_path):
    write_status(tmp_path, State.running, 3)
    assert read_status(tmp_path)["state"] == "running"
    change(tmp_path, pid=gone())
    record = read_status(tmp_path)
    assert (record["state"], record["reason"]) == ("failed", "the process was killed before it could report")
    assert record["step"] == 3


@pytest.mark.parametrize("state", ["finished", "stopped", "failed"])
def test_a_run_that_came_to_an_end_stays_as_it_said(tmp_path, state):
    write_status(tmp_path, State[state], 3, reason="its own")
    change(tmp_path, pid=gone())
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["reason"]) == (state, "its own")


def test_the_process_of_another_machine_cannot_be_looked_for(tmp_path):
    write_status(tmp_path, State.running, 3)
    change(tmp_path, pid=gone(), host="elsewhere")
    assert read_status(tmp_path)["state"] == "running"


def test_a_process_of_somebody_else_is_alive(tmp_path):
    """Init is always there."""
    write_status(tmp_path, State.running, 3)
    change(tmp_path, pid=1)
    assert read_status(tmp_path)["state"] == "running"


def test_a_zombie_has_ended(tmp_path):
    """Its parent, a container's init perhaps, never asks how."""
    write_status(tmp_path, State.running, 3)
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    change(tmp_path, pid=process.pid)
    assert read_status(tmp_path)["state"] == "running"
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked how
    record = read_status(tmp_path)
    process.wait()
    assert (record["state"], record["reason"]) == ("failed", "the process was killed before it could report")


@pytest.mark.parametrize(
    "content", [None, "", "{", '{"state": "runn', "[]", "null", "3", "{}", '{"state": "running"}', b"\xff"]
)
def test_what_is_no_status_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / STATUS).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_status(tmp_path) == {}
    assert read_status(tmp_path / "nowhere") == {}
