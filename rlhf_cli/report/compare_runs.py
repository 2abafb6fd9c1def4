"""Compare the options and the final metrics of runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_cli.config.config_diff import flat
from rlhf_cli.config.errors import InputError
from rlhf_cli.report.intervals import bootstrap_mean
from rlhf_cli.report.run_records import Record, RunRecords, read_run
from rlhf_cli.system.text import printable

_FINAL_PPO = (
    *("score", "kl", "reward", "response_length", "eos_rate", "entropy", "clipfrac/policy", "loss/value"),
    *("tokens_per_s", "time/step", "memory/peak_gib"),
)
_FINAL_REWARD = ("loss", "accuracy", "margin", "grad_norm", "tokens_per_s", "time/step", "memory/peak_gib")
_LAST_STEPS = 10  # their mean is the final value of a training metric


@dataclass(frozen=True)
class Row:
    """The values of an option or a metric in each run; None if a run does not have it."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of a run to the first one on shared rows, with its 95 % interval."""

    name: str  # of the run
    what: str
    num_shared: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    names: tuple[str, ...]
    runs: tuple[RunRecords, ...]
    options: tuple[Row, ...]  # that differ
    metrics: tuple[Row, ...]  # at the end of the runs
    paired: tuple[PairedDifference, ...]
    notes: tuple[str, ...]  # why metrics may not be comparable


def compare(folders: Sequence[Path]) -> Comparison:
    """Read and compare runs. Raises InputError unless they are two or more runs of one kind."""
    if len(folders) < 2:
        raise InputError(f"compare needs two or more run folders, got {len(folders)}")
    runs = tuple(read_run(folder) for folder in folders)
    for run in runs[1:]:
        if run.is_ppo != runs[0].is_ppo:
            kinds = " and ".join("PPO" if one.is_ppo else "a reward model" for one in (runs[0], run))
            raise InputError(f"{runs[0].folder} and {run.folder} are runs of {kinds}; compare runs of one kind")
    names, options = _names(runs), tuple(_different_options(runs))
    paired = [one for name, run in zip(names[1:], runs[1:], strict=True) for one in _paired(name, runs[0], run)]
    return Comparison(names, runs, options, tuple(_metrics(runs)), tuple(paired), tuple(_notes(options, names, runs)))


def _names(runs: Sequence[RunRecords]) -> tuple[str, ...]:
    """Return the shortest ends of the runs' paths that differ."""
    paths = [run.folder.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = tuple(printable(str(Path(*path.parts[-depth:]))) for path in paths)
        if len(set(names)) == len(names):
            return names
    return tuple(f"{name} ({number})" for number, name in enumerate(names, 1))  # the same folder twice


def _different_options(runs: Sequence[RunRecords]) -> Iterator[Row]:
    options = [flat(run.config) for run in runs]
    for key in sorted({key for one in options for key in one}):
        values = tuple(printable(str(one[key])) if key in one else "-" for one in options)
        if len(set(values)) > 1:
            yield Row(key, values)


def _metrics(runs: Sequence[RunRecords]) -> Iterator[Row]:
    yield Row("steps", tuple(run.steps[-1]["step"] if run.steps else None for run in runs))
    rows = [
        Row(f"{name}, mean of the last {_LAST_STEPS} steps", tuple(_last_mean(run, name) for run in runs))
        for name in (_FINAL_PPO if runs[0].is_ppo else _FINAL_REWARD)
    ]
    names = dict.fromkeys(name for run in runs for one in run.evaluations for name in one if name.startswith("eval/"))
    rows += [Row(name, tuple(_last(run.evaluations, name) for run in runs)) for name in names]
    yield from (row for row in rows if any(value is not None for value in row.values))


def _last_mean(run: RunRecords, name: str) -> float | None:
    values = [step[name] for step in run.steps[-_LAST_STEPS:] if step.get(name) is not None]
    return sum(values) / len(values) if values else None


def _last(records: Sequence[Record], name: str) -> float | None:
    return next((record[name] for record in reversed(records) if record.get(name) is not None), None)


def _paired(name: str, first: RunRecords, other: RunRecords) -> Iterator[PairedDifference]:
    candidates: list[tuple[str, dict[Any, float], dict[Any, float]]] = [
        (f"prompts, {mode} {field}", _by_prompt(first, mode, field), _by_prompt(other, mode, field))
        for mode in ("greedy", "sampled")
        for field in ("score", "gold_score")
    ]
    for what, one, two in [*candidates, ("pairs, accuracy", _by_pair(first), _by_pair(other))]:
        differences = [two[key] - one[key] for key in one if key in two]
        if differences:
            found = bootstrap_mean(differences)
            yield PairedDifference(name, what, len(differences), found.mean, found.low, found.high)


def _by_prompt(run: RunRecords, mode: str, field: str) -> dict[Any, float]:
    """Return a field by prompt and, for prompts that occur several times, by occurrence."""
    seen: Counter[str] = Counter()
    values = {}
    for response in run.responses("now", mode):
        key = response["prompt"], seen[response["prompt"]]
        seen[response["prompt"]] += 1
        if response.get(field) is not None:
            values[key] = response[field]
    return values


def _by_pair(run: RunRecords) -> dict[Any, float]:
    """Return 1 for each pair that is ordered correctly, 0 for the others, and 0.5 for ties."""
    keys = ("prompt", "chosen", "rejected")
    return {tuple(pair[key] for key in keys): (1 + float(np.sign(pair["log_odds"]))) / 2 for pair in run.pairs}


def _notes(options: Sequence[Row], names: Sequence[str], runs: Sequence[RunRecords]) -> Iterator[str]:
    newest = {name: run.responses("now", "sampled")[-1:] for name, run in zip(names, runs, strict=True)}
    steps = {name: responses[0].get("step", 0) for name, responses in newest.items() if responses}
    if len(set(steps.values())) > 1:
        by_run = ", ".join(f"{name} from step {step}" for name, step in steps.items())
        yield f"The responses are from different steps: {by_run}."
    for section, score in (("reward_model", "scores"), ("gold_reward_model", "gold scores")):
        changed = [row.name for row in options if row.name in (f"{section}.path", f"{section}.from_config")]
        if changed:
            yield f"{changed[0]} differs: the {score} are from different reward models and not on one scale."
