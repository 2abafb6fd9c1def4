"""The view of a training run on a terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from signal import Signals
from statistics import median
from threading import RLock
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderResult
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment, Segments
from rich.table import Column, Table
from rich.text import Text

from rlhf_cli.report.sparkline import BLOCKS, WINDOW, History, sparkline
from rlhf_cli.system.text import one_line

_REFRESHES_PER_S = 4
_RECENT_STEPS = 20  # the time left is estimated from the durations of these
_MAX_CHARS = 1000  # of a prompt, a response or a warning: more than fits on the screen
_MAX_SAMPLE_LINES = 3  # of a prompt or a response
_MAX_NAME_WIDTH, _VALUE_WIDTH, _CHANGE_WIDTH, _MIN_BAR_WIDTH = 24, 10, 11, 10
_WITH_CURVE, _WITH_CHANGE, _WITH_SAMPLE = 54, 44, 30  # the fewest columns for each
_WITH_GAPS, _WITH_FREE_ROW = 15, 5  # the fewest rows for each
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ASCII = str.maketrans(BLOCKS + "━─↑↓→·…", "_.,-=+*#" + "=-^v> .")


def _format_value(value: float | None, digits: int = 4, sign: str = "") -> str:
    """Format a number in at most ten characters, or in nine with three digits."""
    if value is None:
        return "-"
    return format(value, f"{sign},.0f" if 1e3 <= abs(value) < 1e6 else f"{sign}.{digits}g")


def _format_change(change: float | None) -> str:
    arrow = "" if change is None else "↑" if change > 0 else "↓" if change < 0 else "→"
    return "" if change is None else f"{arrow} {_format_value(change, 3, '+')}"


def _format_duration(seconds: float) -> str:
    """Format a duration as m:ss, or as h:mm:ss from one hour on."""
    minutes, second = divmod(int(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class _TopAnchoredLive(Live):
    """A Live that leaves the cursor on the first row of the view; rich leaves it on the last row.

    A terminal that becomes narrower may wrap the rows into an unknown number of rows, but it keeps
    the cursor at the same place in the text. With the cursor on top, everything below it is the
    view and can be cleared. The first row is blank, so output of other processes lands there and is
    kept.
    """

    _terminal_closed = False

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Print in the place of the view, and draw the view below."""
        if not self.console.is_interactive:
            return super().process_renderables(renderables)
        is_print = not all(isinstance(one, Control) for one in renderables)
        lines = self.console.render_lines(self.get_renderable(), self.console.options, pad=False)
        # ?7l turns wrapping off: terminals draw some characters wider than rich expects.
        frame = [_control("\x1b[?7l")]
        for line in lines:
            frame += [*line, _control("\x1b[K"), Segment.line()]
        back = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""  # 0 would move up by 1
        frame[-1:] = [_control(f"\x1b[J\x1b[?7h\r{back}" if self.is_started else "\n\x1b[J\x1b[?7h")]
        # The last view clears its rows too: tmux would join rows that a narrower window wrapped.
        # `\x1b[J` in the first column would make tmux 3.3 keep the view in its scrollback.
        clear = "\r\x1b[K\x1b[C\x1b[J\r" if is_print or not self.is_started else "\r"
        return [Segments([_control(clear)]), *renderables, Segments(frame)]

    def refresh(self) -> None:
        """Draw the view. If the terminal has been closed, do nothing: the run continues."""
        if not self._terminal_closed:
            try:
                super().refresh()
            except OSError:
                self._terminal_closed = True


def _control(codes: str) -> Segment:
    """Return terminal codes as a segment of no width."""
    return Segment(codes, None, [(ControlType.CARRIAGE_RETURN,)])


class LiveView:
    """The view of a run while it trains. The last view stays on the terminal.

    A thread draws it, so a lock protects the state; it is reentrant because a signal handler may
    take it again. Prompts, responses and warnings are shown as plain text, without markup or escape
    sequences.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        num_steps: int,
        first_step: int,
        metrics: Sequence[str],
        stop_signal: Callable[[], Signals | None] = lambda: None,
    ) -> None:
        """metrics: shown if logged; stop_signal: returns the signal that asked the run to stop."""
        self._console, self._title, self._num_steps = console, one_line(title, 60), num_steps
        self._lock, self._stop_signal = RLock(), stop_signal
        self._live = _TopAnchoredLive(
            console=console, get_renderable=lambda: self, refresh_per_second=_REFRESHES_PER_S, vertical_overflow="crop"
        )
        self._histories = {name: History() for name in metrics}
        self._durations: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._step = first_step  # the newest finished step
        self._started = self._step_started = self._phase_started = console.get_time()
        self._phase, self._is_running = "start", True
        self._evaluation: Text | None = None
        self._sample: tuple[str, str, str] | None = None  # prompt, response, score
        self._checks, self._warning, self._num_warnings = "", "", 0

    def __enter__(self) -> LiveView:
        self._started = self._step_started = self._phase_started = self._console.get_time()
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._is_running = False
        with suppress(OSError):  # the terminal has been closed
            self._live.stop()

    def show_phase(self, name: str) -> None:
        """Show what the run is doing now."""
        with self._lock:
            self._phase, self._phase_started = one_line(name, 20), self._console.get_time()

    def show_step(self, step: int, record: Mapping[str, Any]) -> None:
        """Show a finished step; record: its metrics."""
        now = self._console.get_time()
        with self._lock:
            self._durations.append((now - self._step_started) / max(step - self._step, 1))
            self._step, self._step_started = step, now
            for name, history in self._histories.items():
                value = record.get(name)
                history.add(float(value) if isinstance(value, int | float) else None)

    def show_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Replace the evaluation that is shown."""
        names = {name: one_line(name, 60).removeprefix("eval/") for name in metrics}
        text = "  ".join(f"{names[name]} {_format_value(value)}" for name, value in metrics.items())
        with self._lock:
            self._evaluation = Text.assemble((f"evaluation at step {step}  ", "dim"), text[:_MAX_CHARS])

    def show_sample(self, prompt: str, response: str, score: float) -> None:
        """Replace the sample that is shown."""
        with self._lock:
            self._sample = (_shorten(prompt), _shorten(response), _format_value(score))

    def show_warning(self, text: str) -> None:
        """Count a warning, and show it instead of the one before."""
        with self._lock:
            self._num_warnings += 1
            self._warning = f"after step {self._step}: {_shorten(text)}"

    def show_checks(self, num_ok: int, num_warnings: int, num_failed: int) -> None:
        """Show how many of the setup checks passed."""
        counts = [f"{num_ok} ok"] + [_count_warnings(num_warnings)] * (num_warnings > 0)
        counts += [f"{num_failed} failed"] * (num_failed > 0)
        with self._lock:
            self._checks = f"checks {', '.join(counts)}  ·  "

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The last column stays empty: terminals differ in when they wrap a row that fills it.
        width, height = max(min(options.max_width, options.size.width) - 1, 1), max(options.size.height - 1, 1)
        options = options.update(width=width, height=None)
        try:
            with self._lock:
                lines = self._lines(console, options, height)
        except Exception as error:  # an error of the view must not stop the run
            lines = console.render_lines(Text(one_line(f"cannot draw the view: {error!r}", width)), options, pad=False)
        for line in lines:
            for text, style, _ in line:
                plain = text.translate(_ASCII).encode("ascii", "replace").decode() if options.ascii_only else text
                yield Segment(plain, style)
            yield Segment.line()

    def _lines(self, console: Console, options: ConsoleOptions, height: int) -> list[list[Segment]]:
        """Return the rows of the view. What does not fit is left out, least important first."""

        def rows(block: ConsoleRenderable) -> list[list[Segment]]:
            return console.render_lines(block, options, pad=False)

        width = options.max_width
        free_row: list[list[Segment]] = [[]] if height >= _WITH_FREE_ROW else []
        room = height - len(free_row)
        progress, status = rows(self._progress(width)), rows(self._status())
        table = rows(self._table(width, height >= _WITH_GAPS))[: max(room - len(progress) - len(status), 0)]
        blocks = [block for block in (progress, table, status) if block]
        room -= sum(map(len, blocks))
        evaluation = _wrap(self._evaluation, width, 2, console)
        if len(evaluation) <= room:
            sample = self._sample_lines(width, min((room - len(evaluation) - 1) // 2, _MAX_SAMPLE_LINES))
            blocks += [rows(Group(*lines)) for lines in (evaluation, sample) if lines]
            room -= len(evaluation) + len(sample)
        gap: list[list[Segment]] = [[]] if room >= len(blocks) - 1 and height >= _WITH_GAPS else []
        lines = [line for i, block in enumerate(blocks) for line in (gap if i else []) + block]
        return (free_row + lines)[:height]

    def _progress(self, width: int) -> ConsoleRenderable:
        """Return two rows: title, bar and steps; phase and times."""
        done = self._step / self._num_steps if self._num_steps else 1.0
        steps = f"{'step ' * (width > 40)}{self._step}/{self._num_steps}  {int(100 * min(done, 1))}%"
        bar = Table.grid(Column(style="bold"), Column(ratio=1), Column(), padding=(0, 2, 0, 0), expand=True)
        title = Text(self._title, no_wrap=True)
        title.truncate(max(width - len(steps) - _MIN_BAR_WIDTH - 4, 1), overflow="ellipsis")
        bar.add_row(title, ProgressBar(1.0, done), Text(steps, no_wrap=True))
        return Group(bar, Text("  ".join(self._facts()), no_wrap=True, overflow="ellipsis"))

    def _facts(self) -> list[str]:
        """Return the phase and the times of the run, the most important first."""
        now = self._console.get_time()
        elapsed = f"{_format_duration(now - self._started)} elapsed"
        if not self._is_running:
            return ["done" if self._step >= self._num_steps else "stopped", elapsed]
        spinner = _SPINNER[int(now * _REFRESHES_PER_S) % len(_SPINNER)]
        facts = [f"{spinner} {self._phase} {_format_duration(now - self._phase_started)}"]
        if self._durations:
            left = median(self._durations) * (self._num_steps - self._step) - (now - self._step_started)
            facts.append(f"{_format_duration(left)} left")
        return [*facts, elapsed]

    def _table(self, width: int, with_heading: bool) -> ConsoleRenderable:
        """Return a row for each metric that has been logged: name, value, change and curve."""
        histories = {one_line(name, 60): history for name, history in self._histories.items() if history.values}
        if not histories:
            return Group()
        name_width = min(max(map(len, histories)), _MAX_NAME_WIDTH)
        columns = [Column(max_width=name_width, no_wrap=True, overflow="ellipsis")]
        columns.append(
            Column("now", "", "dim", min_width=min(_VALUE_WIDTH, width), no_wrap=True, justify="right", style="bold")
        )
        columns.append(Column(f"vs last {WINDOW}", "", "dim", min_width=_CHANGE_WIDTH, justify="right", style="cyan"))
        columns.append(Column(no_wrap=True, style="blue"))
        num_columns = 2 + (width >= _WITH_CHANGE) + (width >= _WITH_CURVE)
        has_heading = with_heading and num_columns > 2
        table = Table(*columns[:num_columns], box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=has_heading)
        curve_width = width - name_width - _VALUE_WIDTH - _CHANGE_WIDTH - 6
        for name, history in histories.items():
            cells = (name, _format_value(history.newest), _format_change(history.change))
            curve = sparkline(history.values, curve_width)
            table.add_row(*(Text(cell) for cell in (*cells, curve)[:num_columns]))
        return table

    def _status(self) -> Text:
        """Return one line: the setup checks, a signal that asked to stop, and the warnings."""
        line = Text(self._checks, no_wrap=True, overflow="ellipsis")
        signal = self._stop_signal() if self._is_running else None
        if signal is not None:
            line.append(f"{signal.name}: stops after this step with a checkpoint; send it again to stop now", "bold")
            line.append("  ·  ")
        if self._num_warnings:
            line.append(f"{_count_warnings(self._num_warnings)}, newest {self._warning}", "yellow")
        else:
            line.append("no warnings")
        return line

    def _sample_lines(self, width: int, max_lines: int) -> list[Text]:
        """Return the newest sample: at most `max_lines` lines each of prompt and response."""
        if self._sample is None or max_lines < 1 or width < _WITH_SAMPLE:
            return []
        prompt, response, score = self._sample
        lines = [Text.assemble(("newest sample, score ", "dim"), score)]
        for label, text in (("prompt    ", prompt), ("response  ", response)):
            for i, line in enumerate(_wrap(Text(text), width - len(label), max_lines, self._console)):
                lines.append(Text.assemble((" " * len(label) if i else label, "dim"), line))
        return lines


def _count_warnings(count: int) -> str:
    return f"{count} warning{'s' * (count > 1)}"


def _shorten(text: str) -> str:
    return one_line(text[: 2 * _MAX_CHARS], _MAX_CHARS)


def _wrap(text: Text | None, width: int, max_lines: int, console: Console) -> list[Text]:
    """Break a text into at most `max_lines` lines. An ellipsis marks what is missing."""
    lines = [] if text is None else list(text.wrap(console, width, overflow="fold"))
    if len(lines) > max_lines:
        lines[max_lines - 1].truncate(width - 1)
        lines[max_lines - 1].rstrip()
        lines[max_lines - 1].append("…")
    return lines[:max_lines]
