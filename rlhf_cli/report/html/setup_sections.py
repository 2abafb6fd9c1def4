"""The sections that both kinds of run have: overview, speed and memory, events, setup."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime

from rlhf_cli.config.config_diff import flat
from rlhf_cli.report.html.blocks import Paragraphs, Table, short
from rlhf_cli.report.html.charts import SPEED, draw_charts
from rlhf_cli.report.html.plots import Plot, make_trace, thinned
from rlhf_cli.report.run_records import Record, RunRecords

_PHASES = ("rollout", "score", "update", "checkpoint")


def run_facts(run: RunRecords) -> list[tuple[str, str, str]]:
    """Return the state, the number of steps, the time and the memory of a run."""
    steps, status, total = run.steps, run.status, _num_steps(run)
    done = steps[-1]["step"] if steps else 0
    facts = [
        ("State", str(status.get("state", "unknown")), str(status.get("reason", ""))),
        ("Steps", f"{done} of {total}" if total else str(done), _started(run.run)),
    ]
    if steps:
        seconds = sum(step["time/step"] or 0.0 for step in steps)
        peak = max(step.get("memory/peak_gib") or 0.0 for step in steps)
        planned = run.summary.get("memory", {}).get("planned_gib")
        facts.append(("Time in steps", format_duration(seconds), f"{short(seconds / len(steps))} s per step"))
        facts.append(("Peak memory", f"{peak:.2f} GiB", "" if planned is None else f"{planned:.2f} GiB planned"))
    return facts


def speed(run: RunRecords) -> Iterator[Plot]:
    """Draw the time per phase, tokens per second and memory."""
    traces = []
    for phase in _PHASES:
        if any(f"time/{phase}" in step for step in run.steps):
            seconds = [step.get(f"time/{phase}", 0.0) for step in run.steps]
            traces.append(make_trace(phase, *thinned([step["step"] for step in run.steps], seconds), kind="area"))
    if traces:
        yield Plot("Time by phase", traces, y_title="s")
    yield from draw_charts(SPEED, run.steps, run.evaluations)


def setup(run: RunRecords) -> Iterator[Paragraphs | Table]:
    """Show the plan, the checks before training, the options and the versions."""
    if run.plan:
        yield Paragraphs(run.plan, "Planned batches and memory")
    if run.checks:
        rows = [[one[key] for key in ("status", "name", "figure", "bound", "advice")] for one in run.checks]
        yield Table("Checks before training", ("status", "check", "value", "at most", "if it fails"), rows)
    yield Table("Configuration", ("option", "value"), [(key, _yaml(value)) for key, value in flat(run.config).items()])
    versions = run.run.get("versions", {})
    if isinstance(versions, dict) and versions:
        yield Table("Versions", ("package", "version"), [(name, str(value)) for name, value in versions.items()])


def events(run: RunRecords) -> Iterator[Paragraphs | Table]:
    """Show warnings, findings of guards, resumed starts, and how many lines could not be read."""
    rows = [(one["step"], one["kind"], one["text"], str(one.get("time", ""))) for one in run.events]
    if rows:
        yield Table("Guards, warnings and resumed starts", ("step", "kind", "message", "time"), rows, wide=True)
    if run.unreadable:
        lines = [f"{name}: {count} lines could not be read" for name, count in run.unreadable.items()]
        yield Paragraphs(lines, "Damaged files")


def format_duration(seconds: float) -> str:
    """Format 95 as 1 min 35 s, and 7300 as 2 h 1 min."""
    if not seconds < 1e12:  # from a damaged record
        return "?"
    if seconds < 59.5:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes} min {second} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _num_steps(run: RunRecords) -> int | None:
    section = run.config.get("ppo" if run.is_ppo else "train")
    num_steps = section.get("num_steps") if isinstance(section, dict) else None
    return num_steps if isinstance(num_steps, int) else run.summary.get("steps")


def _started(record: Record) -> str:
    try:
        return f"started {datetime.fromisoformat(str(record['started'])):%Y-%m-%d %H:%M}"
    except (KeyError, ValueError):
        return ""


def _yaml(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
