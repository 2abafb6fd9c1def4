"""The sections that both kinds of run have: what came of it, speed and memory, how it was set up, what happened."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from rlhf_cli.config.config_diff import flat
from rlhf_cli.report.html.blocks import Block, Line, Plot, Table, Words, short, thinned
from rlhf_cli.report.html.charts import SPEED, plots
from rlhf_cli.report.run_records import Record, RunRecords

_PHASES = ("rollout", "score", "update", "checkpoint")


def speed(run: RunRecords) -> Iterator[Block]:
    """Time by phase, tokens a second, memory."""
    phases = [name for name in _PHASES if any(f"time/{name}" in step for step in run.steps)]
    lines = []
    for phase in phases:
        x, y = thinned([step["step"] for step in run.steps], [step.get(f"time/{phase}", 0.0) for step in run.steps])
        lines.append(Line(phase, x, y, kind="area"))
    if lines:
        yield Plot("Time by phase", tuple(lines), y_title="s")
    yield from plots(SPEED, run.steps, run.evaluations)


def setup(run: RunRecords) -> Iterator[Block]:
    """The arithmetic of the batches, the checks before training, every option, the versions."""
    if run.plan:
        yield Words("Batches and memory, as planned", run.plan)
    if run.checks:
        rows = [(one["status"], one["name"], one["figure"], one["bound"], one["advice"]) for one in run.checks]
        yield Table("Checks before training", ("state", "check", "figure", "at most", "if it fails"), rows)
    options = [(key, _option(value)) for key, value in flat(run.config).items()]
    yield Table("Configuration", ("option", "value"), options)
    versions = run.run.get("versions", {})
    if isinstance(versions, dict) and versions:
        yield Table("Versions", ("package", "version"), [(name, str(value)) for name, value in versions.items()])


def events(run: RunRecords) -> Iterator[Block]:
    """What guards and warnings have said, and where the run was gone on with."""
    rows = [(one["step"], one["kind"], one["text"], str(one.get("time", ""))) for one in run.events]
    if rows:
        yield Table("Guards, warnings, resumed starts", ("step", "kind", "what", "when"), rows, wide=True)
    if run.unreadable:
        yield Words("Damaged files", [f"{name}: {num} lines could not be read" for name, num in run.unreadable.items()])


def head(run: RunRecords) -> list[tuple[str, str, str]]:
    """The facts of any run: how it ended, how far it came, how long it took."""
    steps, status = run.steps, run.status
    state = str(status.get("state", "unknown"))
    total = _total(run)
    done = steps[-1]["step"] if steps else 0
    seconds = sum(step["time/step"] or 0.0 for step in steps)
    facts = [("State", state, str(status.get("reason", "")))]
    facts.append(("Steps", f"{done} of {total}" if total else str(done), _when(run.run)))
    if steps:
        facts.append(("Time in steps", duration(seconds), f"{short(seconds / len(steps))} s a step"))
        peak = max((step.get("memory/peak_gib") or 0.0 for step in steps), default=0.0)
        planned = run.summary.get("memory", {}).get("planned_gib")
        facts.append(("Peak memory", f"{peak:.2f} GiB", "" if planned is None else f"{planned:.2f} GiB planned"))
    return facts


def _total(run: RunRecords) -> int | None:
    section = run.config.get("ppo" if run.is_ppo else "train")
    found = section.get("num_steps") if isinstance(section, dict) else None
    return found if isinstance(found, int) else run.summary.get("steps")


def _when(record: Record) -> str:
    try:
        return f"started {datetime.fromisoformat(str(record['started'])):%Y-%m-%d %H:%M}"
    except (KeyError, ValueError):
        return ""


def duration(seconds: float) -> str:
    """Return 95 as 1 min 35 s, 7300 as 2 h 1 min."""
    if not seconds < 1e12:  # of a damaged record
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _option(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
