"""The live view on a pseudoterminal, as a terminal emulator shows it."""

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_cli.report.live_view import LiveView

pyte = pytest.importorskip("pyte")

CHILD = """
import os, sys, time
from rich.console import Console
from rlhf_cli.report.live_view import LiveView

console = Console(soft_wrap=True)
with LiveView(console, "a run", 24, 0, ("score", "kl")) as view:
    for step in range(1, 25):
        view.show_phase("rollout")
        time.sleep(0.1)
        view.show_sample("a prompt " * 9, "an answer " * min(step, 9), 1.0)
        view.show_step(step, {"score": step / 10, "kl": float(-step)})
        if step % 3 == 1:
            console.print(f"line {step}", highlight=False)
        elif step % 3 == 2:
            print(f"line {step}", file=sys.stderr if step % 2 else sys.stdout)
        elif step % 6 == 3:
            os.write(1, f"line {step}\\n".encode())  # as another process would, past the redirection
        else:
            console.print(f"line {step}", highlight=False)
print("after")
"""
# Columns and rows when a line has been seen; always enough for what an earlier, wider view becomes.
SIZES = {"line 5": (60, 20), "line 10": (100, 30), "line 14": (45, 24), "line 17": (90, 22), "line 20": (120, 40)}


class Terminal(pyte.Screen):
    """A terminal that is resized as real ones are: it wraps the text again or cuts it; the cursor stays in place."""

    def __init__(self, reflows):
        self.gone = []  # what has scrolled away
        self.reflows = reflows
        self.joined = set()  # rows that were one with the next, and will be where there is room again
        super().__init__(100, 24)

    def index(self):
        if self.cursor.y == self.lines - 1:
            self.gone.append(self.display[0].rstrip())
            self.joined = {y - 1 for y in self.joined if y}
        super().index()

    def erase_in_line(self, how=0, *args, **kwargs):
        if how == 2 or (how, self.cursor.x) == (0, 0):  # as tmux does: a row that is cleared in part stays joined
            self.joined.discard(self.cursor.y)
        super().erase_in_line(how, *args, **kwargs)

    def erase_in_display(self, how=0, *args, **kwargs):
        if (how, self.cursor.x, self.cursor.y) == (0, 0, 0):  # as tmux does
            self.gone += [row.rstrip() for row in self.display]
        self.joined -= set(range(self.cursor.y + 1 if how == 0 else 0, self.lines))
        super().erase_in_display(how, *args, **kwargs)

    def become(self, columns, lines):
        above, below = [
            wrapped(rows, columns if self.reflows else self.columns)
            for rows in (self.display[: self.cursor.y], self.display[self.cursor.y :])
        ]
        while len(above + below) > lines and len(below) > 1 and not (self.reflows and below[-1]):
            below.pop()
        away = max(len(above + below) - lines, 0)
        self.gone += (above + below)[:away]
        self.resize(lines, columns)
        self.erase_in_display(2)
        for y, row in enumerate((above + below)[away:]):
            self.cursor_position(y + 1, 1)
            self.draw(row[:columns])
            if self.reflows and len(row) == columns:  # nothing but what has been wrapped is as wide
                self.joined.add(y)
        self.cursor_position(max(len(above) - away, 0) + 1, 1)


def wrapped(rows, columns):
    rows = [row.rstrip() for row in rows]
    return [row[start : start + columns] for row in rows for start in range(0, max(len(row), 1), columns)]


def started(code):
    """Start a program on a pseudoterminal. Return its process and our end of the terminal."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=side,
        stdout=side,
        stderr=side,
        cwd=Path(__file__).parents[3],
        env=environment | {"TERM": "xterm-256color", "PYTHONUTF8": "1"},
    )
    os.close(side)
    return child, main


def run_on(child_screen):
    """Run the child on a pseudoterminal, which is resized after certain lines."""
    child, main = started(CHILD)
    stream, sizes, seen = pyte.ByteStream(child_screen), dict(SIZES), ""
    with contextlib.suppress(OSError):  # EIO: the child has ended
        while select.select([main], [], [], 60)[0] and (data := os.read(main, 65536)):
            stream.feed(data)
            seen += data.decode("utf-8", "replace")
            for line in [line for line in sizes if line in seen]:
                columns, lines = sizes.pop(line)
                child_screen.become(columns, lines)
                fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    os.close(main)
    assert child.wait(60) == 0
    assert not sizes


@pytest.mark.parametrize("reflows", [False, True], ids=["cuts", "reflows"])
def test_lines_go_above_a_single_view_on_a_resized_terminal(reflows):
    child_screen = Terminal(reflows)
    run_on(child_screen)
    assert not child_screen.cursor.hidden
    rows = [row.rstrip() for row in child_screen.display]
    assert sum("━" in row for row in rows) == 1
    (top,) = [y for y, row in enumerate(rows) if "━" in row]
    assert rows[top].startswith("a run  ━━━")
    assert "step 24/24  100%" in rows[top]
    assert rows[top + 1].startswith("done")
    above = [row for row in child_screen.gone + rows[:top] if row]
    assert above == [f"line {step}" for step in range(1, 25)]
    below = [row for row in rows[top + 1 :] if row]
    assert [row.split()[0] for row in below[2:6]] == ["score", "kl", "no", "newest"]
    assert below[-1] == "after"
    assert below.count("after") == 1


def test_rows_wrapped_by_a_narrow_window_are_not_joined_at_the_end():
    file, terminal = StringIO(), Terminal(reflows=True)
    stream = pyte.Stream(terminal)
    console = Console(file=file, width=100, height=24, force_terminal=True)
    with LiveView(console, "a run", 2, 0, ("score", "kl")) as view:
        view.show_step(1, {"score": 1.0, "kl": 1.0})
        view.show_sample("a prompt " * 9, "an answer " * 9, 1.0)
        console.print("line 1")
        wide = file.getvalue()
        stream.feed(wide)
        terminal.become(45, 24)
        assert terminal.joined
        console.width = 45
        view.show_step(2, {"score": 2.0, "kl": 2.0})
    stream.feed(file.getvalue().removeprefix(wide))
    assert any("2/2" in row for row in terminal.display)
    assert not terminal.joined


IMPATIENT = """
import os, signal, time
from rich.console import Console
from rlhf_cli.system import signals
from rlhf_cli.report.live_view import LiveView

signals.REPEAT_S = 0.2
stop = signals.StopSignals()
stop.install()
with LiveView(Console(soft_wrap=True), "a run", 24, 0, ("score",), lambda: stop.received) as view:
    view.show_step(1, {"score": 1.0})
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
"""


def test_a_signal_is_confirmed_and_a_second_one_restores_the_terminal():
    child, main = started(IMPATIENT)
    screen = Terminal(reflows=False)
    stream = pyte.ByteStream(screen)
    with contextlib.suppress(OSError):
        while select.select([main], [], [], 60)[0] and (data := os.read(main, 65536)):
            stream.feed(data)
    os.close(main)
    assert child.wait(60) == 130
    rows = screen.gone + [row.rstrip() for row in screen.display]
    assert any("SIGINT: stops after this step with a checkpoint; send it again to stop now" in row for row in rows)
    assert not screen.cursor.hidden
    assert not any(row.strip() for row in screen.display[screen.cursor.y :])  # the shell's prompt has its own row
