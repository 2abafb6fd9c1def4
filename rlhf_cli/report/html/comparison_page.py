"""The page that shows several runs side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_cli.report.compare_runs import Comparison
from rlhf_cli.report.html.blocks import Plot, Section, Table, Words, line_of, section, sections, way_of
from rlhf_cli.report.html.charts import PPO, REWARD, SPEED, WIN_RATE, Chart
from rlhf_cli.report.run_records import RunRecords


def comparison_sections(found: Comparison) -> list[Section]:
    """Return what there is to show of several runs."""
    runs = dict(zip(found.names, found.runs, strict=True))
    differences, figures = tables(found)
    notes = [Words("", found.notes)] if found.notes else []
    charts = PPO if found.runs[0].is_ppo else REWARD
    return sections(
        Section("What differs", (*notes, *differences)),
        Section("Final figures", tuple(figures)),
        section("Training", lambda: _overlaid(charts, runs)),
        section("Evaluations", lambda: _overlaid([WIN_RATE, *charts], runs, evaluations=True)),
        section("The leash", lambda: _leash(runs)),
        section("Speed and memory", lambda: _overlaid(SPEED, runs)),
    )


def tables(found: Comparison) -> tuple[list[Table], list[Table]]:
    """Return what differs, and the figures at the end, as tables for a page or a terminal."""
    options = Table(
        "Options that differ", ("option", *found.names), [(row.name, *row.values) for row in found.differences]
    )
    figures = Table("Final figures", ("figure", *found.names), [(row.name, *row.values) for row in found.figures])
    columns = ("on the same", "run", "shared", f"difference to {found.names[0]}", "95 % interval")
    rows = [
        (row.what, row.name, row.num_shared, f"{row.mean:+.4g}", f"{row.low:+.4g} to {row.high:+.4g}")
        for row in found.paired
    ]
    paired = Table("Paired differences", columns, rows, "Of each run less the first, on what both have in common.")
    return [one for one in (options,) if one.rows], [one for one in (figures, paired) if one.rows]


def _overlaid(charts: Sequence[Chart], runs: dict[str, RunRecords], evaluations: bool = False) -> Iterator[Plot]:
    """Draw a plot a metric with a line a run."""
    for chart in charts:
        for metric in chart.metrics:
            lines = []
            for name, run in runs.items():
                records = run.evaluations if evaluations else run.steps
                kind = {"kind": "points"} if evaluations else {"smooth": True}
                lines.append(line_of(records, metric, name, **kind))
            drawn = tuple(line for line in lines if line is not None)
            if drawn:
                yield Plot(metric, drawn, y_title=chart.unit, hint=chart.hint if metric == chart.metrics[0] else "")


def _leash(runs: dict[str, RunRecords]) -> Iterator[Plot]:
    lines = []
    for name, run in runs.items():
        steps = [step for step in run.steps if step.get("score") is not None and step.get("kl") is not None]
        lines += [way_of(name, steps, kind="path")] if steps else []
    if lines:
        title = "Score against KL: higher at the same KL is better"
        yield Plot(title, tuple(lines), "KL, nats a response", "score", large=True)
