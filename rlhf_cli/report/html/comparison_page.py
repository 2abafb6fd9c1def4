"""The page that compares several runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_cli.report.compare_runs import Comparison
from rlhf_cli.report.html.blocks import Paragraphs, Section, Table, build_sections
from rlhf_cli.report.html.charts import PPO, REWARD, SPEED, WIN_RATE, Chart
from rlhf_cli.report.html.plots import SMOOTH, Plot, metric_trace, score_over_kl
from rlhf_cli.report.run_records import RunRecords


def comparison_sections(comparison: Comparison) -> list[Section]:
    """Return the sections of a comparison that have data."""
    runs = dict(zip(comparison.names, comparison.runs, strict=True))
    options, metrics = comparison_tables(comparison)
    notes = [Paragraphs(comparison.notes)] if comparison.notes else []
    charts = PPO if comparison.runs[0].is_ppo else REWARD
    return build_sections(
        ("What differs", lambda: [*notes, *options]),
        ("Final metrics", lambda: metrics),
        ("Training", lambda: _overlay(charts, runs)),
        ("Evaluations", lambda: _overlay([WIN_RATE, *charts], runs, evaluations=True)),
        ("Over-optimisation", lambda: _score_against_kl(runs)),
        ("Speed and memory", lambda: _overlay(SPEED, runs)),
    )


def comparison_tables(comparison: Comparison) -> tuple[list[Table], list[Table]]:
    """Return the options that differ, and the final metrics, as tables for a page or a terminal."""
    names = comparison.names
    options, metrics = ([(row.name, *row.values) for row in rows] for rows in (comparison.options, comparison.metrics))
    paired = [
        (row.what, row.name, row.num_shared, f"{row.mean:+.4g}", f"{row.low:+.4g} to {row.high:+.4g}")
        for row in comparison.paired
    ]
    columns = ("measured on", "run", "shared", f"difference to {names[0]}", "95 % interval")
    note = "Each run minus the first one, on the prompts or pairs that both have."
    return (
        [Table("Options that differ", ("option", *names), options)] if options else [],
        [Table("Final metrics", ("metric", *names), metrics)] * bool(metrics)
        + [Table("Paired differences", columns, paired, note)] * bool(paired),
    )


def _overlay(charts: Sequence[Chart], runs: dict[str, RunRecords], evaluations: bool = False) -> Iterator[Plot]:
    """Draw a plot for each metric, with a trace for each run."""
    style = {"kind": "points"} if evaluations else {"meta": SMOOTH}
    for chart in charts:
        for metric in chart.metrics:
            found = [
                metric_trace(run.evaluations if evaluations else run.steps, metric, name, **style)
                for name, run in runs.items()
            ]
            traces = [trace for trace in found if trace is not None]
            if traces:
                hint = chart.hint if metric == chart.metrics[0] else ""
                yield Plot(metric, traces, y_title=chart.unit, hint=hint)


def _score_against_kl(runs: dict[str, RunRecords]) -> Iterator[Plot]:
    traces = []
    for name, run in runs.items():
        steps = [step for step in run.steps if step.get("score") is not None and step.get("kl") is not None]
        traces += [score_over_kl(name, steps)] if steps else []
    if traces:
        title = "Score against KL: higher at the same KL is better"
        yield Plot(title, traces, "KL, nats per response", "score", large=True)
