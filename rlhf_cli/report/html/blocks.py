"""What a page is made of: sections of plots, tables and facts. Text in them is plain; the template escapes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rlhf_cli.report.run_records import Record, is_usual
from rlhf_cli.system.text import one_line, printable

MOST_POINTS = 5000  # of a line; a longer one is drawn as the means of so many stretches
_DIGITS = 5
_STRETCHES, _FEW_STRETCHES = 30, 12  # of a histogram
_ENOUGH = 200  # values for the finer one

Number = float | int | None


@dataclass(frozen=True)
class Line:
    """One series of a plot."""

    name: str
    x: Sequence[Number | str]
    y: Sequence[Number]
    kind: str = "line"  # line, points, path (points of a plane, joined), bars or area
    low: Sequence[Number] = ()  # of an interval around each y
    high: Sequence[Number] = ()
    text: Sequence[str] = ()  # said of each point when it is pointed at
    smooth: bool = False  # whether the page's smoothing is for it
    colours: Sequence[Number] = ()  # of points, along a scale


@dataclass(frozen=True)
class Mark:
    """A point that is pointed out."""

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class Plot:
    title: str
    lines: tuple[Line, ...]
    x_title: str = "step"
    y_title: str = ""
    hint: str = ""  # what healthy looks like
    marks: tuple[Mark, ...] = ()
    log: bool = False
    large: bool = False
    kind: str = "plot"

    @property
    def summary(self) -> str:
        """The plot in words."""
        return " ".join(_in_words(line) for line in self.lines)

    def as_data(self) -> dict[str, Any]:
        """Return what the page's script draws."""
        return {
            "title": self.title,
            "x": self.x_title,
            "y": self.y_title,
            "log": self.log,
            "lines": [_line_data(line) for line in self.lines],
            "marks": [{"text": mark.text, "x": mark.x, "y": mark.y} for mark in self.marks],
        }


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str | Number]]
    note: str = ""
    wide: bool = False  # with long texts
    kind: str = "table"


@dataclass(frozen=True)
class Answers:
    """Held-out prompts with what the policy said before and now."""

    title: str
    rows: Sequence[Record]  # prompt, mode, before, now, score_before, score_now, pieces (index into data), gold_...
    pieces: Sequence[tuple[Sequence[str], Sequence[float]]]  # of `now`, with the KL of each
    note: str = ""
    has_gold: bool = False
    kind: str = "answers"


@dataclass(frozen=True)
class Facts:
    facts: Sequence[tuple[str, str, str]]  # name, value, what it means
    kind: str = "facts"


@dataclass(frozen=True)
class Words:
    """Lines as they are."""

    title: str
    lines: Sequence[str]
    kind: str = "words"


Block = Plot | Table | Answers | Facts | Words


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]
    about: str = ""

    @property
    def anchor(self) -> str:
        """The name to link to."""
        return "".join(char if char.isalnum() else "-" for char in self.title.lower())


def section(title: str, blocks: Callable[[], Iterable[Block]], about: str = "") -> Section:
    """Make a section; what a damaged file does to it stands in it, and the others are shown all the same."""
    try:
        return Section(title, tuple(blocks()), about)
    except Exception as error:
        return Section(title, (Words("", [f"cannot be shown: {type(error).__name__}: {one_line(error, 300)}"]),), about)


def sections(*candidates: Section) -> list[Section]:
    """Leave out the sections that have nothing to show."""
    return [one for one in candidates if one.blocks]


def line_of(records: Sequence[Record], metric: str, name: str = "", **more: Any) -> Line | None:
    """Return a metric over steps; None where no record has it."""
    found = [(record["step"], _number(record[metric])) for record in records if metric in record]
    if all(value is None for _, value in found):
        return None
    steps = [step for step, _ in found]
    x, y = thinned(steps, [value for _, value in found])
    for end in ("low", "high"):
        values = [_number(record.get(f"{metric}_{end}")) for record in records if metric in record]
        if any(value is not None for value in values):
            more = {end: thinned(steps, values)[1], **more}
    return Line(name or metric, x, y, **more)


def way_of(name: str, steps: Sequence[Record], kind: str) -> Line:
    """Return the scores of steps over their KL; steps: with both."""
    numbers = [step["step"] for step in steps]
    x, kl = thinned(numbers, [step["kl"] for step in steps])
    scores = thinned(numbers, [step["score"] for step in steps])[1]
    return Line(name, kl, scores, kind=kind, text=[f"step {step}" for step in x], colours=x if kind == "points" else ())


def thinned(x: Sequence[Any], y: Sequence[Number]) -> tuple[list[Any], list[Number]]:
    """Return a series as it is, or as the means of MOST_POINTS stretches, each at its last place."""
    if len(x) <= MOST_POINTS:
        return list(x), list(y)
    edges = [round(place * len(x) / MOST_POINTS) for place in range(MOST_POINTS + 1)]
    means: list[Number] = []
    for low, high in pairwise(edges):
        known = [value for value in y[low:high] if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return [x[edge - 1] for edge in edges[1:]], means


def histogram(title: str, groups: Mapping[str, Sequence[float]], unit: str, share: str, hint: str = "") -> Plot:
    """Return the shares of each group's values in stretches of equal width; none has 0 within it."""
    groups = {name: [value for value in values if is_usual(value)] for name, values in groups.items()}
    every = [value for values in groups.values() for value in values]
    low, width, count = _stretches(every)
    middles = [low + width * (place + 0.5) for place in range(count)]
    lines = []
    for name, values in groups.items():
        counts = [0] * count
        for value in values:
            counts[min(int((value - low) / width), count - 1)] += 1
        lines.append(Line(name, middles, [count / max(1, len(values)) for count in counts], kind="bars"))
    return Plot(title, tuple(lines), unit, share, hint)


def _stretches(values: Sequence[float]) -> tuple[float, float, int]:
    """Return where a histogram begins, the width of a stretch and their number; each has as many whole numbers."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    most = _STRETCHES if len(values) >= _ENOUGH else _FEW_STRETCHES
    if all(isinstance(value, int) for value in values):
        width = max(1, math.ceil((high - low + 1) / most))
        return low - 0.5, width, math.ceil((high - low + 1) / width)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    each = (high - low) / most
    if not low < 0 < high:
        return low, each, most
    below, above = math.ceil(-low / each), math.ceil(high / each)
    return -below * each, each, below + above


def short(value: Any) -> str:
    """Return a figure for people."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return printable(str(value))
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def _line_data(line: Line) -> dict[str, Any]:
    data: Mapping[str, Any] = {
        "name": printable(line.name),
        "x": [_rounded(value) for value in line.x],
        "y": [_rounded(value) for value in line.y],
        "kind": line.kind,
        "smooth": line.smooth,
        "low": [_rounded(value) for value in line.low],
        "high": [_rounded(value) for value in line.high],
        "text": [printable(text) for text in line.text],
        "colours": [_rounded(value) for value in line.colours],
    }
    return {key: value for key, value in data.items() if value not in ([], False)}


def _rounded(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) and math.isfinite(value) else value


def _number(value: Any) -> Number:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def _in_words(line: Line) -> str:
    known = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None]
    name = printable(line.name)
    if not known:
        return f"{name}: no figures."
    low, high = min(known, key=lambda point: point[1]), max(known, key=lambda point: point[1])
    (first_x, first), (last_x, last) = known[0], known[-1]
    ends = f"{short(first)} at {short(first_x)}, {short(last)} at {short(last_x)}"
    return f"{name}: {ends}; lowest {short(low[1])} at {short(low[0])}, highest {short(high[1])} at {short(high[0])}."
