"""The view of a training run on a terminal: progress, the figures that matter, newest evaluation and sample."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from signal import Signals
from statistics import median
from threading import RLock
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment, Segments
from rich.text import Text

from rlhf_cli.report.sparkline import BLOCKS, WINDOW, History, sparkline
from rlhf_cli.system.text import one_line

_REFRESHES_PER_S = 4
_RECENT = 20  # durations of steps that the time left is guessed from
_MOST_CHARACTERS = 1000  # of a prompt or an answer: more than its lines have room for
_MOST_LINES = 3  # of a prompt or an answer
_LOW, _LOWEST = 15, 5  # rows: a view of fewer has none for a heading and gaps, or for other processes
_NARROW_SAMPLE, _NARROW_CURVE, _NARROW_BAR = 30, 8, 10  # cells, with fewer of which these are left out
_WIDEST_NAME, _WIDEST_BAR = 24, 40
_VALUE, _CHANGE = 10, 11  # cells of these columns
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ASCII = str.maketrans(BLOCKS + "━─↑↓→·…", "_.,-=+*#" + "=-^v> .")  # where a terminal knows no more


def _figure(value: float | None, digits: int = 4, sign: str = "") -> str:
    """Write a number in at most ten characters, or in nine with three digits."""
    if value is None:
        return "-"
    return format(value, f"{sign},.0f" if 1e3 <= abs(value) < 1e6 else f"{sign}.{digits}g")


def _clock(seconds: float) -> str:
    """Write a duration as m:ss, or h:mm:ss from an hour on."""
    minutes, second = divmod(int(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class _CursorOnTop(Live):
    """A Live whose cursor waits on the first row of its view, where rich leaves it on the last.

    A terminal that becomes narrower may wrap the rows, and nobody says into how many; that it keeps the cursor at its
    place in the text is all that can be relied on. What follows the cursor is then the view, whatever became of it,
    and frames can be drawn in any order. What other processes write lands on the first row, which is blank, and stays.
    """

    _is_gone = False

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Put what is printed in the place of the view, and the view below it."""
        if not self.console.is_interactive:
            return super().process_renderables(renderables)
        is_print = not all(isinstance(one, Control) for one in renderables)
        lines = self.console.render_lines(self.get_renderable(), self.console.options, pad=False)
        # Without wrapping (?7l) a row stays one row, also where the terminal finds a character wider than rich does.
        frame = [_code("\x1b[?7l")]
        for line in lines:
            frame += [*line, _code("\x1b[K"), Segment.line()]
        back = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""  # 0 rows up would be 1
        frame[-1:] = [_code(f"\x1b[J\x1b[?7h\r{back}" if self.is_started else "\n\x1b[J\x1b[?7h")]
        # The last view goes on cleared rows too: tmux remembers which rows a narrower window had wrapped until they are
        # cleared as a whole, and would join those when the window becomes wider again.
        # Not `\x1b[J` in the first column: tmux (3.3 on) takes it for a clear where that is the screen's corner, and
        # keeps the view among what has scrolled away.
        clear = "\r\x1b[K\x1b[C\x1b[J\r" if is_print or not self.is_started else "\r"
        return [Segments([_code(clear)]), *renderables, Segments(frame)]

    def refresh(self) -> None:
        """Draw the view; where the terminal has gone away, never again, and the run goes on without."""
        if not self._is_gone:
            try:
                super().refresh()
            except OSError:
                self._is_gone = True


def _code(text: str) -> Segment:
    """Return codes for the terminal, which take no room; their kind matters on old Windows only."""
    return Segment(text, None, [(ControlType.CARRIAGE_RETURN,)])


class LiveView:
    """What a run shows on a terminal while it trains; the last view stays there.

    A thread draws it, so whatever two methods share is under a lock (that a signal handler may take once more).
    Prompts, answers and warnings are shown as they are: no markup, no escapes, and cut.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        num_steps: int,
        first_step: int,
        rows: Sequence[str],
        asked: Callable[[], Signals | None] = lambda: None,
    ) -> None:
        """rows: metrics, of which those that are logged are shown; asked: the signal that has asked for the end."""
        self._console, self._title, self._num_steps = console, one_line(title, 60), num_steps
        self._lock, self._asked = RLock(), asked
        self._live = _CursorOnTop(
            console=console,
            get_renderable=lambda: self,
            refresh_per_second=_REFRESHES_PER_S,
            vertical_overflow="crop",
        )
        self._histories = {name: History() for name in rows}
        self._durations: deque[float] = deque(maxlen=_RECENT)
        self._step = first_step  # the newest that is done
        self._start = self._stepped = self._entered = console.get_time()
        self._phase = "start"
        self._runs = True
        self._evaluation: Text | None = None
        self._sample: tuple[str, str, str] | None = None  # prompt, answer, score
        self._checks = ""
        self._warning = ""
        self._num_warnings = 0

    def __enter__(self) -> LiveView:
        self._start = self._stepped = self._entered = self._console.get_time()
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._runs = False
        with suppress(OSError):  # the terminal has gone away
            self._live.stop()

    def phase(self, name: str) -> None:
        """Say what the run does now."""
        with self._lock:
            self._phase, self._entered = one_line(name, 20), self._console.get_time()

    def step(self, step: int, record: Mapping[str, Any]) -> None:
        """Take in what a step that is done has logged."""
        now = self._console.get_time()
        with self._lock:
            self._durations.append((now - self._stepped) / max(step - self._step, 1))
            self._step, self._stepped = step, now
            for name, history in self._histories.items():
                value = record.get(name)
                history.add(float(value) if isinstance(value, int | float) else None)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show an evaluation, in place of the one before."""
        figures = "  ".join(f"{one_line(name, 60).removeprefix('eval/')} {_figure(metrics[name])}" for name in metrics)
        with self._lock:
            self._evaluation = Text.assemble((f"evaluation at step {step}  ", "dim"), figures[:_MOST_CHARACTERS])

    def sample(self, prompt: str, response: str, score: float) -> None:
        """Show an answer, in place of the one before."""
        texts = [one_line(text[: 2 * _MOST_CHARACTERS], _MOST_CHARACTERS) for text in (prompt, response)]
        with self._lock:
            self._sample = (texts[0], texts[1], _figure(score))

    def warned(self, text: str) -> None:
        """Show a warning, in place of the one before."""
        with self._lock:
            self._num_warnings += 1
            self._warning = f"after step {self._step}: {one_line(text[: 2 * _MOST_CHARACTERS], _MOST_CHARACTERS)}"

    def checked(self, num_ok: int, num_warn: int, num_failed: int) -> None:
        """Show how many checks of the set-up hold."""
        counts = [f"{num_ok} ok"]
        counts += [f"{num_warn} warning{'s' * (num_warn > 1)}"] * (num_warn > 0)
        counts += [f"{num_failed} failed"] * (num_failed > 0)
        with self._lock:
            self._checks = f"checks {', '.join(counts)}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The last column stays free: a terminal that has filled it is about to wrap, and each kind in its own way.
        width, height = max(min(options.max_width, options.size.width) - 1, 1), max(options.size.height - 1, 1)
        try:
            with self._lock:
                lines = self._lines(width, height)
        except Exception as error:  # shown instead: nothing that is wrong with the view may stop a training run
            lines = [Text(one_line(f"no view: {error!r}", width))]
        for line in lines:
            if options.ascii_only:
                line.plain = line.plain.translate(_ASCII).encode("ascii", "replace").decode()
            line.truncate(width, overflow="ellipsis" if not options.ascii_only else "crop")
            yield from line.render(console)
            yield Segment.line()

    def _lines(self, width: int, height: int) -> list[Text]:
        """Lay out what there is room for; what matters least goes first."""
        landing = [Text()] if height >= _LOWEST else []  # where other processes write: the cursor is there
        room = height - len(landing)
        top, states = self._progress(width), self._states()
        table = self._table(width, height >= _LOW)[: max(room - len(top) - len(states), 0)]
        blocks = [block for block in (top, table, states) if block]
        left = room - sum(map(len, blocks))
        evaluation = [] if self._evaluation is None else _wrapped(self._evaluation, width, 2, self._console)
        if len(evaluation) <= left:
            sample = self._sample_lines(width, min((left - len(evaluation) - 1) // 2, _MOST_LINES))
            blocks += [block for block in (evaluation, sample) if block]
            left -= len(evaluation) + len(sample)
        gap = [Text()] if left >= len(blocks) - 1 and height >= _LOW else []
        lines = [line for i, block in enumerate(blocks) for line in (gap if i else []) + block]
        return landing + lines[:room]

    def _progress(self, width: int) -> list[Text]:
        """Return the progress as one line where that leaves room for a bar, else as two."""
        now = self._console.get_time()
        share = min(self._step / self._num_steps, 1.0) if self._num_steps else 1.0
        steps = f"{'step ' * (width > 40)}{self._step}/{self._num_steps}  {int(100 * share)}%"
        facts = self._facts(now)
        room = width - cell_len("  ".join([self._title, "", steps, *facts]))
        if room >= _NARROW_BAR:
            return [Text("  ").join([Text(self._title, "bold"), _bar(share, room), Text("  ".join([steps, *facts]))])]
        while len(facts) > 1 and cell_len("  ".join(facts)) > width:
            facts.pop()
        room = width - cell_len(steps) - 2
        title = Text(self._title, "bold")
        title.truncate(max(room - _NARROW_BAR - 2, 0), overflow="ellipsis")
        room -= cell_len(title.plain) + 2 * bool(title)
        first = [title, _bar(share, room), Text(steps)]
        return [Text("  ").join(part for part in first if part), Text("  ".join(facts))]

    def _facts(self, now: float) -> list[str]:
        """Return what the run does and its times, the most wanted first."""
        elapsed = f"{_clock(now - self._start)} elapsed"
        if not self._runs:
            return ["done" if self._step >= self._num_steps else "stopped", elapsed]
        spinner = _SPINNER[int(now * _REFRESHES_PER_S) % len(_SPINNER)]
        facts = [f"{spinner} {self._phase} {_clock(now - self._entered)}"]
        if self._durations:
            left = median(self._durations) * (self._num_steps - self._step) - (now - self._stepped)
            facts.append(f"{_clock(left)} left")
        return [*facts, elapsed]

    def _table(self, width: int, has_heading: bool) -> list[Text]:
        """Return a line for each metric that the run has logged, below a heading."""
        shown = {one_line(name, 60): history for name, history in self._histories.items() if history}
        names = min(max(map(cell_len, shown), default=0), _WIDEST_NAME, max(width - _VALUE - 1, 0))
        has_change = names + 1 + _VALUE + 2 + _CHANGE <= width
        room = width - names - 1 - _VALUE - 2 - _CHANGE - 2
        has_curve = room >= _NARROW_CURVE
        heading = f"{'':{names}} {'now':>{_VALUE}}  {f'vs last {WINDOW}':>{_CHANGE}}"
        lines = [Text(heading, "dim")] if shown and has_heading and has_change else []
        for name, history in shown.items():
            line = Text(name)
            line.truncate(names, overflow="ellipsis", pad=True)
            line.append(f" {_figure(history.newest):>{_VALUE}}", "bold")
            if has_change:
                line.append(f"  {_arrow(history.change):>{_CHANGE}}", "cyan")
            if has_curve:
                line.append(f"  {sparkline(history.points, room)}", "blue")
            lines.append(line)
        return lines

    def _states(self) -> list[Text]:
        """Return one line of what checks and guards say."""
        line = Text(f"{self._checks}  ·  " if self._checks else "")
        asked = self._asked() if self._runs else None
        if asked is not None:
            line.append(
                f"{asked.name}: ends after this step, with a checkpoint; at once if it comes again  ·  ", "bold"
            )
        if self._num_warnings:
            count = f"{self._num_warnings} warning{'s' * (self._num_warnings > 1)}"
            line.append(f"{count}, newest {self._warning}", "yellow")
        else:
            line.append("guards quiet")
        return [line]

    def _sample_lines(self, width: int, most: int) -> list[Text]:
        """Return the newest sample, prompt and answer in at most so many lines each."""
        if self._sample is None or most < 1 or width < _NARROW_SAMPLE:
            return []
        prompt, answer, score = self._sample
        lines = [Text.assemble(("newest sample, score ", "dim"), score)]
        for label, text in (("prompt  ", prompt), ("answer  ", answer)):
            for i, line in enumerate(_wrapped(Text(text), width - len(label), most, self._console)):
                lines.append(Text.assemble((" " * len(label) if i else label, "dim"), line))
        return lines


def _arrow(change: float | None) -> str:
    """Write a change with its direction, which is neither good nor bad."""
    if change is None:
        return ""
    return f"{'↑' if change > 0 else '↓' if change < 0 else '→'} {_figure(change, 3, '+')}"


def _bar(share: float, width: int) -> Text:
    """Draw the share that is done."""
    width = max(min(width, _WIDEST_BAR), 0)
    done = int(share * width)
    return Text.assemble(("━" * done, "cyan"), ("─" * (width - done), "dim"))


def _wrapped(text: Text, width: int, most: int, console: Console) -> list[Text]:
    """Break a text into at most so many lines."""
    lines = list(text.wrap(console, width, overflow="fold"))
    if len(lines) > most:
        lines[most - 1].truncate(width - 1)
        lines[most - 1].rstrip()
        lines[most - 1].append("…")
    return lines[:most]
