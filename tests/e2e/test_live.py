"""The live view of real runs on a pseudoterminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.conftest import child_environment
from tests.e2e.processes import TINY

pyte = pytest.importorskip("pyte")
COLUMNS, LINES = 110, 44


def on_a_terminal(folder: Path, *args: str) -> list[str]:
    """Run the command on a terminal of its own; return all that scrolled away and the last screen, row by row."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    words = [sys.executable, "-m", "rlhf_cli", *args]
    environment = child_environment(TERM="xterm-256color")
    child = subprocess.Popen(words, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    screen = pyte.HistoryScreen(COLUMNS, LINES, history=2000, ratio=0.5)
    stream = pyte.ByteStream(screen)
    with contextlib.suppress(OSError):  # the other side is closed
        while part := os.read(ours, 65536):
            stream.feed(part)
    os.close(ours)
    assert child.wait(30) == 0
    above = ["".join(row[column].data for column in range(COLUMNS)) for row in screen.history.top]
    return [row.rstrip() for row in (*above, *screen.display)]


def test_a_run_on_two_ranks_shows_itself(tmp_path: Path) -> None:
    rows = on_a_terminal(tmp_path, *TINY, "eval.every_steps=4", "launch.num_gpus=2", "check.num_prompts=2")
    text = "\n".join(rows)
    assert sum("step 8/8" in row for row in rows) == 1
    assert "step 1/8" not in text  # the line that a pipe gets
    for shown in ("score", "clipfrac/policy", "memory/peak_gib", "checks ", "evaluation at step 8", "newest sample"):
        assert text.count(shown) >= 1, shown
    assert rows[-1] == ""
    ended = [row for row in rows if row][-1]
    assert ended == "report: outputs/tiny/report.html"
    assert text.index("step 8/8") < text.index("held-out score, greedy")


def test_the_live_view_can_be_switched_off(tmp_path: Path) -> None:
    rows = on_a_terminal(
        tmp_path, "train-rm", "conf=tiny", "report.live=false", "report.html=false", "report.trackers=[]"
    )
    assert sum(row.startswith("step ") for row in rows) == 4
    folder = tmp_path / "outputs/tiny_rm"
    assert not (folder / "report.html").exists()
    assert not (folder / "tensorboard").exists()
