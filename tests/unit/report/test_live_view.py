import math
import sys
import time
from io import StringIO

import pytest
from rich.cells import cell_len
from rich.console import Console

from rlhf_cli.report.live_view import LiveView
from rlhf_cli.report.sparkline import History, sparkline

ROWS = ("score", "kl", "reward", "response_length", "entropy", "clipfrac/policy", "memory/peak_gib")
HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]no\r\n[/red]\ttext\u202e [link=x]\x00" + "很长的文字 🙂 e\u0301" * 20000


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def screen(width=100, height=40, clock=None, file=None):
    """Return a terminal without colours: what is drawn on it has no escapes."""
    return Console(
        file=file or StringIO(),
        width=width,
        height=height,
        force_terminal=True,
        color_system=None,
        get_time=clock or Clock(),
    )


def shown(view, console):
    """Draw a view; return its lines."""
    with console.capture() as capture:
        console.print(view, soft_wrap=True)
    assert all(char.isprintable() for char in capture.get().replace("\n", ""))
    return [line.rstrip() for line in capture.get().removesuffix("\n").split("\n")]


def record(step, **more):
    return {"step": step, "score": step / 10, "kl": 0.5 * step, "memory/peak_gib": 61.3, "text": "x", **more}


def full(console, text="a text " * 300):
    """Return a view that has everything to show."""
    view = LiveView(console, text, 200, 0, ROWS)
    for step in range(1, 41):
        view.show_step(step, record(step, **{name: math.sin(step) for name in ROWS}))
    view.show_phase("rollout")
    view.show_evaluation(40, {f"eval/figure_{i}": i / 3 for i in range(9)} | {f"eval/{text}": math.inf})
    view.show_sample(text, text, 1.5)
    view.show_warning(text)
    view.show_checks(14, 1, 0)
    return view


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([7, 7, 0, 0], 10, "██▁▁"),  # no wider than there are values
        ([0, 2, 6, 8], 2, "▁█"),  # means 1 and 7
        ([0, 4, 8, 8, 8], 2, "▁█"),  # shares of two and of three
        ([0, math.nan, 7], 3, "▁ █"),
        ([0, math.inf, 7, 7], 2, "▁█"),  # an infinity does not drown the rest of its share
        ([3, 3, 3], 3, "▄▄▄"),
        ([-1e308, 1.7e308], 2, "▁█"),
        ([0, 5e-324], 2, "▁█"),
        ([math.nan], 1, " "),
        ([], 5, ""),
        ([1, 2], 0, ""),
        ([1, 2], -3, ""),
    ],
)
def test_sparkline(values, width, expected):
    assert sparkline(values, width) == expected


def test_change_is_relative_to_the_mean_of_the_ten_steps_before():
    """In 100, 1..10, 20, the mean of the ten values before 20 is 5.5."""
    history = History()
    for value in (100, *range(1, 11), 20):
        history.add(float(value))
    assert history.change == 14.5


def test_change_skips_values_that_are_not_finite():
    history = History()
    history.add(1.0)
    assert history.change is None
    for value in (math.nan, 3.0, math.inf, 5.0):
        history.add(value)
    assert history.change == 3.0  # 5 less the mean of 1 and 3
    history.add(math.nan)
    assert history.change is None
    history.add(None)
    assert history.change is None


def test_a_long_run_is_drawn_fast_and_keeps_its_shape():
    history = History()
    for step in range(100_000):
        history.add(float(step))
    start = time.process_time()
    assert sparkline(history.values, 8) == "▁▂▃▄▅▆▇█"
    assert time.process_time() - start < 0.1


def test_a_constant_metric_is_flat():
    history = History()
    for _ in range(5000):
        history.add(61.3)
    assert sparkline(history.values, 7) == "▄" * 7
    assert history.change == 0


@pytest.mark.parametrize("text", ["a text " * 300, HOSTILE], ids=["plain", "hostile"])
@pytest.mark.parametrize("height", [1, 2, 5, 10, 12, 40])
@pytest.mark.parametrize("width", [1, 2, 5, 20, 40, 80, 160])
def test_a_view_is_never_wider_or_taller_than_its_window(width, height, text):
    console = screen(width, height)
    for view in (LiveView(console, text, 0, 0, ROWS), full(console, text)):
        lines = shown(view, console)
        assert len(lines) <= max(height - 1, 1)
        assert max(map(cell_len, lines)) <= max(width - 1, 1)
        assert not any("no view" in line for line in lines)


def test_a_view_of_100_columns():
    clock = Clock()
    console = screen(100, 30, clock)
    view = LiveView(console, "tldr", 40, 0, ROWS)
    for step in range(1, 11):
        clock.now += 30
        view.show_step(step, record(step))
    view.show_phase("update")
    clock.now += 12
    view.show_sample("Why?", "Because.", 0.25)
    view.show_evaluation(10, {"eval/score": 1 / 3, "eval/kl": 2.0})
    view.show_checks(14, 0, 0)
    top, times, heading, *rows, status, evaluation, score, prompt, response = filter(None, shown(view, console))
    assert top.split() == ["tldr", "━" * 19, "step", "10/40", "25%"]  # 19 of 76 columns
    # A step takes 30 s: 30 of them minus the 12 s that this one has taken.
    assert times == "⠇ update 0:12  14:48 left  5:12 elapsed"
    assert heading.split() == ["now", "vs", "last", "10"]
    assert rows == [
        "score                     1       ↑ +0.5  ▁▂▃▃▄▅▆▆▇█",  # 0.1 .. 0.9 before it: 0.5
        "kl                        5       ↑ +2.5  ▁▂▃▃▄▅▆▆▇█",
        "memory/peak_gib        61.3         → +0  ▄▄▄▄▄▄▄▄▄▄",
    ]
    assert status == "checks 14 ok  ·  no warnings"
    assert evaluation == "evaluation at step 10  score 0.3333  kl 2"
    assert score == "newest sample, score 0.25"
    assert (prompt, response) == ("prompt    Why?", "response  Because.")


def test_narrow_views_drop_the_curve_then_the_change_then_the_sample():
    def has(width):
        text = "\n".join(shown(full(screen(width, 40)), screen(width, 40)))
        return tuple(sign in text for sign in ("█", "↑", "newest sample", "score"))

    assert has(80) == (True, True, True, True)
    assert has(46) == (False, True, True, True)
    assert has(36) == (False, False, True, True)
    assert has(24) == (False, False, False, True)


@pytest.mark.parametrize("width", [36, 160])
def test_low_views_drop_the_sample_then_the_evaluation_then_rows_from_the_bottom(width):
    def has(height):
        text = "\n".join(shown(full(screen(width, height)), screen(width, height)))
        signs = ("newest sample", "evaluation", "memory/peak", "kl", "score", "40/200", "checks")
        return "".join(sign[0] for sign in signs if sign in text)

    assert has(40) == "nemks4c"
    assert has(14) == "emks4c"
    assert has(12) == "mks4c"
    assert has(7) == "ks4c"
    assert has(5) == "s4c"
    assert has(3) == "4"


def test_metrics_that_were_never_logged_have_no_row():
    console = screen(60, 30)
    view = LiveView(console, "a", 3, 0, ROWS)
    view.show_step(1, {"score": 1, "kl": None, "reward": math.nan, "entropy": 20_000.0})
    view.show_step(2, {"reward": -math.inf, "entropy": 30_500.4})
    rows = {line.split()[0]: line.split()[1:] for line in shown(view, console) if line.startswith(ROWS)}
    assert rows == {"score": ["-", "▄"], "reward": ["-inf"], "entropy": ["30,500", "↑", "+10,500", "▁█"]}


def test_the_newest_warning_is_shown_with_its_step_and_a_count():
    console = screen()
    view = LiveView(console, "a", 9, 4, ROWS)
    view.show_warning("early")
    assert "1 warning, newest after step 4: early" in shown(view, console)
    view.show_step(5, {})
    view.show_warning("[red]kl is\n high")
    view.show_checks(12, 2, 1)
    expected = "checks 12 ok, 2 warnings, 1 failed  ·  2 warnings, newest after step 5: [red]kl is high"
    assert expected in shown(view, console)


def test_markup_is_shown_as_text():
    console = screen(100, 40)
    text = "[red]a[/red] [link=x] [/bold]"  # the last would be an error
    view = LiveView(console, text, 9, 0, ROWS)
    view.show_sample(f"P {text}", f"A {text}", 0.0)
    view.show_evaluation(1, {f"eval/{text}": 1.0})
    view.show_warning(text)
    lines = shown(view, console)
    assert lines[1].startswith(f"{text}  ")
    assert f"1 warning, newest after step 0: {text}" in lines[4]
    assert f"evaluation at step 1  {text} 1" in lines
    assert lines[-2:] == [f"prompt    P {text}", f"response  A {text}"]


def test_a_long_text_ends_in_an_ellipsis_after_three_lines():
    console = screen(48, 40)
    view = LiveView(console, "a", 9, 0, ROWS)
    view.show_sample("很" * 5000, "", 0.0)
    *_, score, first, second, third, response = shown(view, console)
    assert score == "newest sample, score 0"
    assert (first, second, third) == ("prompt    " + "很" * 18, " " * 10 + "很" * 18, " " * 10 + "很" * 18 + "…")
    assert response == "response"


def test_time_left_is_from_the_median_so_one_slow_step_does_not_count():
    clock = Clock()
    console = screen(160, 20, clock)
    view = LiveView(console, "a", 13, 7, ROWS)
    assert " left" not in shown(view, console)[2]
    for step, seconds in ((8, 10), (9, 5000), (10, 10)):
        clock.now += seconds
        view.show_step(step, {})
    assert "  0:30 left  1:23:40 elapsed" in shown(view, console)[2]


def test_an_error_of_the_view_is_shown_and_not_raised(monkeypatch):
    console = screen(60, 20)
    view = full(console)
    monkeypatch.setattr("rlhf_cli.report.live_view._format_duration", lambda seconds: 1 / 0)
    assert shown(view, console) == ["cannot draw the view: ZeroDivisionError('division by zero')"]


class Ascii(StringIO):
    encoding = "ascii"

    def write(self, text):
        return super().write(text.encode("ascii").decode())


def test_an_ascii_terminal_gets_only_ascii():
    console = screen(80, 40, file=Ascii())
    console.print(full(console, "很 e\u0301"))
    text = console.file.getvalue()
    assert "  -----------" in text
    assert "prompt    ? e?" in text


def interrupted(view, error):
    with view:
        view.show_step(4, record(4))
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_last_view_stays_and_the_terminal_is_restored(error):
    streams = sys.stdout, sys.stderr
    console = screen(80, 20)
    view = LiveView(console, "a run", 9, 3, ROWS)
    with pytest.raises(error):
        interrupted(view, error)
    assert (sys.stdout, sys.stderr) == streams
    written = console.file.getvalue()
    assert written.endswith("\x1b[?25h")
    before, no_wrapping, last = written.rpartition("\x1b[?7l")
    assert before
    assert no_wrapping
    assert "\x1b[?7h" in last
    assert "a run" in last
    assert "stopped" in last
    assert "4/9" in last
    view.show_step(5, {})  # of no effect, and no error


def test_a_run_to_the_end_is_done():
    console = screen(80, 20)
    with LiveView(console, "a", 1, 0, ROWS) as view:
        view.show_step(1, record(1))
    assert "done" in console.file.getvalue().rpartition("\x1b[?7l")[2]


class Leaving(StringIO):
    """A terminal that is closed when the view of step 1 is written."""

    def write(self, text):
        if "1/9" in text:
            raise OSError(5, "Input/output error")
        return super().write(text)


def test_a_closed_terminal_does_not_stop_the_run():
    streams = sys.stdout, sys.stderr
    console = screen(file=Leaving())
    with LiveView(console, "a", 9, 0, ROWS) as view:
        view.show_step(1, record(1))
        time.sleep(0.6)  # the thread draws it
    assert "0/9" in console.file.getvalue()
    assert (sys.stdout, sys.stderr) == streams


def test_a_file_gets_the_last_view_only():
    console = Console(file=StringIO(), width=100, height=20)
    with LiveView(console, "a", 9, 0, ROWS) as view:
        console.print("a line")
        view.show_step(1, record(1))
    text = console.file.getvalue()
    assert text.startswith("a line\n")
    assert text.count("1/9") == 1
    assert "\x1b" not in text
