"""The plots of a report page, as traces and layouts of plotly.js."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rlhf_cli.report.html.blocks import short
from rlhf_cli.report.run_records import Record, is_usual
from rlhf_cli.system.text import printable

MAX_POINTS = 5000  # of a trace; a longer one is drawn as the means of this many stretches
_DIGITS = 5
_BINS, _FEW_BINS = 30, 12  # of a histogram
_MANY_VALUES = 200  # values from which a histogram has more bins
# For colour-blind people, on a light and a dark page. Traces differ in their dashes too.
_COLOURS = ("#2f86c8", "#d9702b", "#1f9e78", "#c06fa0", "#a3861c", "#858b93")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross")
_KINDS: dict[str, dict[str, Any]] = {
    "line": {"type": "scatter", "mode": "lines"},
    "points": {"type": "scatter", "mode": "lines+markers"},
    "area": {"type": "scatter", "mode": "lines", "stackgroup": "all"},
    "bars": {"type": "bar", "opacity": 0.75},
    "labels": {"type": "scatter", "mode": "markers+text", "textposition": "top center"},
}
SMOOTH = "smooth"  # the `meta` of a trace that the slider of the page smooths

Number = float | int | None
Trace = dict[str, Any]  # a trace of plotly.js without its colours


@dataclass(frozen=True)
class Plot:
    title: str
    traces: Sequence[Trace]
    x_title: str = "step"
    y_title: str = ""
    hint: str = ""  # what a healthy run looks like
    log: bool = False
    large: bool = False

    @property
    def summary(self) -> str:
        """The plot in words."""
        return " ".join(_describe(trace) for trace in self.traces)

    @property
    def figure(self) -> dict[str, Any]:
        """Title, traces and layout for the script of the page."""
        data = []
        for i, trace in enumerate(self.traces):
            colour = _COLOURS[i % len(_COLOURS)]
            line = {"color": colour, "width": 2, "dash": _DASHES[(i + i // len(_COLOURS)) % len(_DASHES)]}
            data.append({"line": line, "marker": {"color": colour, "symbol": _SYMBOLS[i % len(_SYMBOLS)]}, **trace})
        layout = {
            "xaxis": {"title": {"text": self.x_title}},
            "yaxis": {"title": {"text": self.y_title}},
            "showlegend": len(data) > 1,
            "barmode": "overlay",
            "hovermode": "closest" if self.large else "x unified",
        }
        return {"title": self.title, "data": data, "layout": layout}


def make_trace(name: str, x: Sequence[Number | str], y: Sequence[Number], kind: str = "line", **more: Any) -> Trace:
    """Return a trace. kind: a key of _KINDS; more: keys of plotly.js."""
    trace = {"name": printable(name), "x": _rounded(x), "y": _rounded(y), **_KINDS[kind], **more}
    if kind == "line" and len(y) == 1:
        trace["mode"] = "markers"
    if "text" in trace:
        trace["text"] = [printable(text) for text in trace["text"]]
    return {"hovertemplate": ("%{text}: " if "text" in trace else "") + "%{y:.5g}", **trace}


def interval(y: Sequence[Number], low: Sequence[Number], high: Sequence[Number]) -> dict[str, Any]:
    """Return the error bars of a trace."""
    above, below = (
        [None if top is None or bottom is None else top - bottom for top, bottom in zip(tops, bottoms, strict=True)]
        for tops, bottoms in ((high, y), (y, low))
    )
    return {"type": "data", "symmetric": False, "array": _rounded(above), "arrayminus": _rounded(below)}


def metric_trace(records: Sequence[Record], metric: str, name: str = "", **more: Any) -> Trace | None:
    """Return a metric over steps with its interval, if any; None if it was not logged."""
    records = [record for record in records if metric in record]
    steps, values = [record["step"] for record in records], [_number(record[metric]) for record in records]
    if all(value is None for value in values):
        return None
    x, y = thinned(steps, values)
    low, high = ([_number(record.get(f"{metric}_{end}")) for record in records] for end in ("low", "high"))
    if any(value is not None for value in low):
        more["error_y"] = interval(y, thinned(steps, low)[1], thinned(steps, high)[1])
    return make_trace(name or metric, x, y, **more)


def score_over_kl(name: str, steps: Sequence[Record], with_colours: bool = False) -> Trace:
    """Return scores over KL. with_colours: each point has the colour of its step."""
    numbers = [step["step"] for step in steps]
    x, kl = thinned(numbers, [step["kl"] for step in steps])
    scores = thinned(numbers, [step["score"] for step in steps])[1]
    text = [f"step {step}" for step in x]
    if not with_colours:
        return make_trace(name, kl, scores, kind="points", text=text)
    bar = {"title": {"text": "step"}, "thickness": 10}
    marker = {"color": x, "colorscale": "Viridis", "colorbar": bar, "size": 6}
    return make_trace(name, kl, scores, kind="points", text=text, mode="markers", marker=marker)


def thinned(x: Sequence[Any], y: Sequence[Number]) -> tuple[list[Any], list[Number]]:
    """Return a series as it is, or as the means of MAX_POINTS stretches, each at its last x."""
    if len(x) <= MAX_POINTS:
        return list(x), list(y)
    edges = [round(i * len(x) / MAX_POINTS) for i in range(MAX_POINTS + 1)]
    means: list[Number] = []
    for low, high in pairwise(edges):
        known = [value for value in y[low:high] if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return [x[edge - 1] for edge in edges[1:]], means


def histogram(title: str, groups: Mapping[str, Sequence[float]], x_title: str, y_title: str, hint: str = "") -> Plot:
    """Return the share of each group's values in bins. 0 is never inside a bin."""
    groups = {name: [value for value in values if is_usual(value)] for name, values in groups.items()}
    low, width, num_bins = _bins([value for values in groups.values() for value in values])
    middles = [low + width * (i + 0.5) for i in range(num_bins)]
    traces = []
    for name, values in groups.items():
        counts = Counter(min(int((value - low) / width), num_bins - 1) for value in values)
        shares = [counts[number] / max(1, len(values)) for number in range(num_bins)]
        traces.append(make_trace(name, middles, shares, kind="bars"))
    return Plot(title, traces, x_title, y_title, hint)


def _bins(values: Sequence[float]) -> tuple[float, float, int]:
    """Return the lower edge, the width and the number of bins."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    num_bins = _BINS if len(values) >= _MANY_VALUES else _FEW_BINS
    if all(isinstance(value, int) for value in values):
        width = max(1, math.ceil((high - low + 1) / num_bins))
        return low - 0.5, width, math.ceil((high - low + 1) / width)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    step = (high - low) / num_bins
    if not low < 0 < high:
        return low, step, num_bins
    below, above = math.ceil(-low / step), math.ceil(high / step)
    return -below * step, step, below + above


def _rounded(values: Sequence[Any]) -> list[Any]:
    return [
        float(f"{value:.{_DIGITS}g}") if isinstance(value, float) and math.isfinite(value) else value
        for value in values
    ]


def _number(value: Any) -> Number:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _describe(trace: Trace) -> str:
    points = [(x, y) for x, y in zip(trace["x"], trace["y"], strict=True) if y is not None]
    if not points:
        return f"{trace['name']}: no values."
    lowest, highest = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
    first, last, low, high = (f"{short(y)} at {short(x)}" for x, y in (points[0], points[-1], lowest, highest))
    return f"{trace['name']}: {first}, {last}; lowest {low}, highest {high}."
