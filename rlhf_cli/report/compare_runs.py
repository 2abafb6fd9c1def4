"""Compare the options and the metrics of runs: as tables, and as the sections of a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from rlhf_cli.config.config_diff import flat
from rlhf_cli.config.errors import InputError
from rlhf_cli.report.html.blocks import Paragraphs, Section, Table, build_sections
from rlhf_cli.report.html.charts import PPO, REWARD, SPEED, WIN_RATE, Chart
from rlhf_cli.report.html.plots import SMOOTH, Plot, metric_trace, score_over_kl
from rlhf_cli.report.intervals import bootstrap_mean
from rlhf_cli.report.run_records import RunRecords, has_values
from rlhf_cli.system.text import printable

_FINAL_PPO = (
    *("score", "kl", "reward", "response_length", "eos_rate", "entropy", "clipfrac/policy", "loss/value"),
    *("tokens_per_s", "time/step", "memory/peak_gib"),
)
_FINAL_REWARD = ("loss", "accuracy", "margin", "grad_norm", "tokens_per_s", "time/step", "memory/peak_gib")
_LAST_STEPS = 10  # their mean is the final value of a training metric
_ABOUT_PAIRED = "Each run minus the first one, on the prompts or pairs that both have."

Row = tuple[Any, ...]


class Comparison:
    """What differs between runs of one kind. A value is None, or -, if a run does not have it."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Read and compare runs. Raises InputError unless they are two or more runs of one kind."""
        if len(folders) < 2:
            raise InputError(f"compare needs two or more run folders, got {len(folders)}")
        runs = [RunRecords(folder) for folder in folders]
        for run in runs[1:]:
            if run.is_ppo != runs[0].is_ppo:
                kinds = " and ".join("PPO" if one.is_ppo else "a reward model" for one in (runs[0], run))
                raise InputError(f"{runs[0].folder} and {run.folder} are runs of {kinds}; compare runs of one kind")
        names = _names(runs)
        self.runs = dict(zip(names, runs, strict=True))
        self.options = Table("Options that differ", ("option", *names), list(_different_options(runs)))
        self.metrics = Table("Final metrics", ("metric", *names), list(_metrics(runs)))  # at the end of the runs
        paired = [row for name in names[1:] for row in _paired(name, runs[0], self.runs[name])]
        columns = ("measured on", "run", "shared", f"difference to {names[0]}", "95 % interval")
        self.paired = Table("Paired differences", columns, paired, _ABOUT_PAIRED)
        self.notes = list(_notes([str(row[0]) for row in self.options.rows], self.runs))

    def sections(self) -> list[Section]:
        """Return the sections of the page that have data."""
        charts = PPO if next(iter(self.runs.values())).is_ppo else REWARD
        notes = [Paragraphs(self.notes)] if self.notes else []
        return build_sections(
            ("What differs", lambda: [*notes, *_with_rows(self.options)]),
            ("Final metrics", lambda: _with_rows(self.metrics, self.paired)),
            ("Training", lambda: _overlay(charts, self.runs)),
            ("Evaluations", lambda: _overlay([WIN_RATE, *charts], self.runs, evaluations=True)),
            ("Over-optimisation", lambda: _score_against_kl(self.runs)),
            ("Speed and memory", lambda: _overlay(SPEED, self.runs)),
        )


def _with_rows(*tables: Table) -> list[Table]:
    return [table for table in tables if table.rows]


def _names(runs: Sequence[RunRecords]) -> list[str]:
    """Return the shortest ends of the runs' paths that differ."""
    paths = [run.folder.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = [printable(str(Path(*path.parts[-depth:]))) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]  # the same folder twice


def _different_options(runs: Sequence[RunRecords]) -> Iterator[Row]:
    options = [flat(run.config) for run in runs]
    for key in sorted(set().union(*options)):
        values = [printable(str(one[key])) if key in one else "-" for one in options]
        if len(set(values)) > 1:
            yield key, *values


def _metrics(runs: Sequence[RunRecords]) -> Iterator[Row]:
    yield "steps", *(run.steps[-1]["step"] if run.steps else None for run in runs)
    finals = _FINAL_PPO if runs[0].is_ppo else _FINAL_REWARD
    rows: list[Row] = [
        (f"{name}, mean of the last {_LAST_STEPS} steps", *(_last_mean(run.steps[-_LAST_STEPS:], name) for run in runs))
        for name in finals
    ]
    names = dict.fromkeys(name for run in runs for one in run.evaluations for name in one if name.startswith("eval/"))
    rows += [(name, *(_last_mean(run.evaluations, name, 1) for run in runs)) for name in names]
    yield from (row for row in rows if any(value is not None for value in row[1:]))


def _last_mean(records: Sequence[Mapping[str, Any]], name: str, count: int = _LAST_STEPS) -> float | None:
    """Return the mean of the last `count` values of a metric; None if there is none."""
    values = [record[name] for record in records if record.get(name) is not None][-count:]
    return fmean(values) if values else None


def _paired(name: str, first: RunRecords, other: RunRecords) -> Iterator[Row]:
    """Return the mean differences of a run to the first one on shared rows, with 95 % intervals."""
    values = [
        (f"prompts, {mode} {field}", _by_prompt(first, mode, field), _by_prompt(other, mode, field))
        for mode in ("greedy", "sampled")
        for field in ("score", "gold_score")
    ]
    for what, one, two in [*values, ("pairs, accuracy", _by_pair(first), _by_pair(other))]:
        differences = [two[key] - one[key] for key in one if key in two]
        if differences:
            found = bootstrap_mean(differences)
            yield what, name, len(differences), f"{found.mean:+.4g}", f"{found.low:+.4g} to {found.high:+.4g}"


def _by_prompt(run: RunRecords, mode: str, field: str) -> dict[Any, float]:
    """Return a field by prompt and, for prompts that occur several times, by occurrence."""
    seen: Counter[str] = Counter()
    values = {}
    for response in run.responses("now", mode):
        prompt = response["prompt"]
        seen[prompt] += 1
        if response.get(field) is not None:
            values[prompt, seen[prompt]] = response[field]
    return values


def _by_pair(run: RunRecords) -> dict[Any, float]:
    """Return 1 for each pair that is ordered correctly, 0 for the others, and 0.5 for ties."""
    keys = ("prompt", "chosen", "rejected")
    return {tuple(pair[key] for key in keys): (1 + float(np.sign(pair["log_odds"]))) / 2 for pair in run.pairs}


def _notes(options: Sequence[str], runs: Mapping[str, RunRecords]) -> Iterator[str]:
    """Explain why scores may not be comparable. options: those that differ."""
    newest = {name: run.responses("now", "sampled")[-1:] for name, run in runs.items()}
    steps = {name: responses[0].get("step", 0) for name, responses in newest.items() if responses}
    if len(set(steps.values())) > 1:
        by_run = ", ".join(f"{name} from step {step}" for name, step in steps.items())
        yield f"The responses are from different steps: {by_run}."
    for section, score in (("reward_model", "scores"), ("gold_reward_model", "gold scores")):
        changed = [name for name in options if name in (f"{section}.path", f"{section}.from_config")]
        if changed:
            yield f"{changed[0]} differs: the {score} are from different reward models and not on one scale."


def _overlay(charts: Sequence[Chart], runs: Mapping[str, RunRecords], evaluations: bool = False) -> Iterator[Plot]:
    """Draw a plot for each metric, with a trace for each run."""
    style = {"kind": "points"} if evaluations else {"meta": SMOOTH}
    for chart in charts:
        for metric in chart.metrics:
            found = [
                metric_trace(run.evaluations if evaluations else run.steps, metric, name, **style)
                for name, run in runs.items()
            ]
            if traces := [trace for trace in found if trace is not None]:
                hint = chart.hint if metric == chart.metrics[0] else ""
                yield Plot(metric, traces, y_title=chart.unit, hint=hint)


def _score_against_kl(runs: Mapping[str, RunRecords]) -> Iterator[Plot]:
    scored = {name: [step for step in run.steps if has_values(step, "score", "kl")] for name, run in runs.items()}
    if traces := [score_over_kl(name, steps) for name, steps in scored.items() if steps]:
        title = "Score against KL: higher at the same KL is better"
        yield Plot(title, traces, "KL, nats per response", "score", large=True)
