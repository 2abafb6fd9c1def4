"""Who failed first speaks, what hangs is ended, and the ranks' places are told."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlhf_cli.system import watchdog as module
from rlhf_cli.system.watchdog import PROGRESS, Progress, Watchdog
from tests.conftest import REPOSITORY, child_environment


def silent(_):
    raise AssertionError("nothing hangs here")


def dogs(folder, num_ranks=2):
    return [Watchdog(folder, rank, num_ranks, 60.0, silent) for rank in range(num_ranks)]


@pytest.fixture
def progress():
    """The progress of this process, put back afterwards."""
    before = dict(vars(PROGRESS))
    yield PROGRESS
    vars(PROGRESS).update(before)


CHILD = """
import sys, threading, time
from pathlib import Path
from rlhf_cli.system import watchdog
from rlhf_cli.system.watchdog import PROGRESS, Watchdog
folder, rank = Path(sys.argv[1]), 0
def on_stall(message):
    print("told", message, flush=True)
watchdog._GRACE_S = 0.3
{body}
"""


def child(folder, body):
    words = [sys.executable, "-c", CHILD.format(body=body), str(folder)]
    return subprocess.Popen(
        words, cwd=REPOSITORY, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(folder, body):
    """The exit code of a child process, what it said, and what it said of errors."""
    process = child(folder, body)
    try:
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, out, err


def test_the_first_rank_that_fails_speaks(tmp_path):
    first, second = dogs(tmp_path)
    assert first.first_failure() is None
    assert second.claim_failure(5) is None
    assert first.claim_failure(1) == 5
    assert first.first_failure() == second.first_failure() == {"rank": 1, "code": 5}


def test_a_rank_fails_once(tmp_path):
    """Its watchdog and its main thread may give up at the same time, for two reasons: one speaks, one code holds."""
    first, second = dogs(tmp_path)
    assert second.claim_failure(8) is None
    assert second.claim_failure(1) == 8
    assert first.first_failure() == {"rank": 1, "code": 8}
    assert first.claim_failure(1) == 8


def test_of_many_that_fail_at_once_one_is_the_first(tmp_path):
    ranks = dogs(tmp_path, 16)
    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(lambda dog: dog.claim_failure(100 + dog.rank), ranks))
    (first,) = (rank for rank, code in enumerate(codes) if code is None)
    assert codes == [None if rank == first else 100 + first for rank in range(16)]


def test_without_its_folder_every_rank_speaks(tmp_path):
    """The supervisor has ended: better twice than not at all."""
    assert [dog.claim_failure(5) for dog in dogs(tmp_path / "gone")] == [None, None]


def test_a_failure_that_is_half_written_is_not_read(tmp_path):
    first, _ = dogs(tmp_path)
    (tmp_path / "failure").write_text('{"rank": 1, "co')
    assert first.first_failure() is None


def test_rank_positions(tmp_path, progress):
    """Each says what it does; seen 5 s ago it may still be busy, 6 s ago it is silent."""
    ranks = dogs(tmp_path, 5)
    progress.enter("rollout", 3)
    progress.ticked_at = time.monotonic() - 31
    ranks[0]._write_heartbeat()
    progress.enter("update", 4)
    ranks[1]._write_heartbeat()
    for rank, seen in ((2, 4.5), (3, 31.0)):
        record = {"doing": "in rollout of step 3", "for": 2.0, "seen": time.time() - seen}
        (tmp_path / f"rank{rank}").write_text(json.dumps(record))
    expected = [
        "rank 0 in rollout of step 3 for 31 s",
        "rank 1 in update of step 4 for 0 s",
        "rank 2 in rollout of step 3 for 2 s",
        "rank 3 silent for 31 s, last in rollout of step 3",
        "rank 4 never started",
    ]
    assert ranks[4].rank_positions() == "; ".join(expected)


def test_progress_says_what_is_done_and_since_when(monkeypatch):
    progress = Progress()
    assert str(progress) == "in load of step 0"
    assert 0 <= time.monotonic() - progress.ticked_at < 5
    now = 101.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    progress.enter("rollout", 3)
    now = 102.0
    assert (str(progress), progress.ticked_at) == ("in rollout of step 3", 101.0)
    progress.enter("update")
    assert (str(progress), progress.ticked_at) == ("in update of step 3", 102.0)
    now = 103.0
    progress.tick()
    assert (str(progress), progress.ticked_at) == ("in update of step 3", 103.0)


def test_a_rank_that_makes_no_progress_ends_with_8_and_says_who_stands_where(tmp_path):
    record = {"doing": "in update of step 7", "for": 3.0, "seen": time.time() - 60}
    (tmp_path / "rank1").write_text(json.dumps(record))
    start = time.monotonic()
    code, out, err = ended(
        tmp_path,
        """
PROGRESS.enter("rollout", 7)
Watchdog(folder, 0, 3, 0.4, on_stall).start()
def a_collective_that_waits():
    time.sleep(60)
a_collective_that_waits()
""",
    )
    assert code == 8
    assert time.monotonic() - start < 15
    told, _, places = out.strip().partition(": ")
    assert told == "told no progress for 0.4 s (launch.timeout_s)"
    first, second, third = places.split("; ")
    assert first == "rank 0 in rollout of step 7 for 0 s"
    assert second.startswith("rank 1 silent for 6")
    assert second.endswith(" s, last in update of step 7")
    assert third == "rank 2 never started"
    assert "a_collective_that_waits" in err  # where it hangs
    assert json.loads((tmp_path / "failure").read_text()) == {"rank": 0, "code": 8}


def test_who_hangs_after_another_failed_ends_with_the_others_code(tmp_path):
    """Its own time has not run out."""
    (_, other) = dogs(tmp_path)
    assert other.claim_failure(6) is None
    code, out, _ = ended(tmp_path, "Watchdog(folder, 0, 2, 50.0, on_stall).start(); time.sleep(60)")
    assert (code, out) == (6, "")


def test_who_hangs_while_another_has_just_failed_does_not_speak(tmp_path):
    """Both notice at once: the code is that of the first, and it alone tells."""
    (_, other) = dogs(tmp_path)
    assert other.claim_failure(8) is None
    code, out, err = ended(tmp_path, "Watchdog(folder, 0, 2, 0.1, on_stall)._end_stalled()")
    assert (code, out) == (8, "")
    assert "most recent call first" in err


def test_who_ends_by_itself_in_time_keeps_its_own_code(tmp_path):
    """The grace is for the error that the failed rank's end causes here; stop() ends the watch."""
    (_, other) = dogs(tmp_path)
    assert other.claim_failure(6) is None
    body = """
watchdog._GRACE_S = 1.0
dog = Watchdog(folder, 0, 2, 2.0, on_stall)
dog.start()
print(dog.claim_failure(1), flush=True)
time.sleep(1.8)
sys.exit(4)
"""
    assert ended(tmp_path, body)[:2] == (4, "6\n")


def test_who_makes_progress_is_left_alone(tmp_path):
    """For three times the timeout; and its sign of life is there."""
    body = """
dog = Watchdog(folder, 0, 1, 0.4, on_stall)
dog.start()
for step in range(12):
    PROGRESS.enter("update", step)
    time.sleep(0.1)
print((folder / "rank0").exists(), sorted(path.name for path in folder.iterdir()))
dog.stop()
time.sleep(0.6)
"""
    assert ended(tmp_path, body)[:2] == (0, "True ['rank0']\n")


def test_a_rank_that_cannot_speak_is_ended_all_the_same(tmp_path):
    """What it writes to is gone: `rlhf train-ppo 2>&1 | head`; the process must not hang for ever."""
    body = """
def on_stall(message):
    raise BrokenPipeError
threading.Timer(5.0, lambda: __import__("os")._exit(3)).start()
PROGRESS.enter("rollout", 3)
Watchdog(folder, 0, 1, 0.2, on_stall).start()
time.sleep(60)
"""
    assert ended(tmp_path, body)[0] == 8


def test_the_watch_goes_on_without_its_folder(tmp_path):
    body = """
PROGRESS.enter("rollout", 3)
Watchdog(folder / "gone", 0, 1, 0.2, on_stall).start()
time.sleep(60)
"""
    code, out, _ = ended(tmp_path, body)
    assert (code, out.startswith("told no progress for 0.2 s")) == (8, True)


def test_loading_takes_what_it_takes(tmp_path):
    """Imports, downloads and tokenising; a rank that fails there ends the others all the same."""
    body = """
dog = Watchdog(folder, 0, 1, 0.2, on_stall)
dog.start()
time.sleep(1.0)
print(PROGRESS, dog.is_alive())
"""
    assert ended(tmp_path, body)[:2] == (0, "in load of step 0 True\n")


@pytest.mark.parametrize(
    ("own", "others", "still"),
    [
        (61, [], True),
        (59, [], False),
        (61, [(61, 0)], True),
        (61, [(56, 0)], True),  # what it says of itself is up to 5 s old
        (61, [(54, 0)], False),
        (61, [(2, 0)], False),  # one that works: we wait for it
        (59, [(61, 0)], False),  # and we may be that one
        (61, [(2, 4)], False),
        (61, [(2, 6)], True),  # it worked, and is gone
        (61, [(2, 6), (61, 0)], True),
        (61, [(61, 0), (2, 0)], False),
    ],
)
def test_a_stall_is_when_no_rank_that_shows_life_gets_on(tmp_path, progress, own, others, still):
    """others: seconds since each did something, and since it was seen; the limit is 60 s. The last is never seen."""
    progress.enter("rollout", 3)
    progress.ticked_at = time.monotonic() - own
    for rank, (since, unseen) in enumerate(others, start=1):
        record = {"doing": "in rollout of step 3", "for": since, "seen": time.time() - unseen}
        (tmp_path / f"rank{rank}").write_text(json.dumps(record))
    dog = dogs(tmp_path, len(others) + 2)[0]
    dog._write_heartbeat()
    assert dog._all_ranks_stalled() is still
