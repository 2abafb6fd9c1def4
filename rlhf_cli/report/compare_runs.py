"""What several runs differ in, and how they ended; differences are paired where runs share prompts or pairs."""

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
_LAST_STEPS = 10  # whose mean is a final figure of training


@dataclass(frozen=True)
class Row:
    """An option or a figure in every run; None where a run has no such figure."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Paired:
    """The mean difference of a run to the first one, on what both have in common."""

    name: str
    what: str  # prompts or pairs, and what of them
    num_shared: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    names: tuple[str, ...]
    runs: tuple[RunRecords, ...]
    differences: tuple[Row, ...]
    figures: tuple[Row, ...]
    paired: tuple[Paired, ...]
    notes: tuple[str, ...]  # what to know before figures are compared


def compare(folders: Sequence[Path]) -> Comparison:
    """Read runs and compare them; raise InputError unless they are two or more of one kind."""
    if len(folders) < 2:
        raise InputError(f"compare wants two or more run folders, got {len(folders)}")
    runs = tuple(read_run(folder) for folder in folders)
    for run in runs[1:]:
        if run.is_ppo != runs[0].is_ppo:
            kinds = " and ".join("PPO" if one.is_ppo else "a reward model" for one in (runs[0], run))
            raise InputError(f"{runs[0].folder} and {run.folder} are runs of {kinds}; wanted runs of one kind")
    names = _names(runs)
    differences = tuple(_differences(runs))
    return Comparison(
        names,
        runs,
        differences,
        tuple(_figures(runs)),
        tuple(one for name, run in zip(names[1:], runs[1:], strict=True) for one in _paired(name, runs[0], run)),
        tuple(_notes(differences, names, runs)),
    )


def _notes(differences: Sequence[Row], names: Sequence[str], runs: Sequence[RunRecords]) -> Iterator[str]:
    steps = {name: run.answers("now", "sampled")[-1:] for name, run in zip(names, runs, strict=True)}
    at = {name: answers[0].get("step", 0) for name, answers in steps.items() if answers}
    if len(set(at.values())) > 1:
        yield (
            "answers are of different steps: " + ", ".join(f"{name} of step {step}" for name, step in at.items()) + "."
        )
    for section, what in (("reward_model.", "score"), ("gold_reward_model.", "gold score")):
        changed = [row.name for row in differences if row.name in (f"{section}path", f"{section}from_config")]
        if changed:
            yield f"{changed[0]} differs: each {what} is of another reward model, and not on one scale."


def _names(runs: Sequence[RunRecords]) -> tuple[str, ...]:
    """Name runs after their folders, with as much of the path as tells them apart."""
    paths = [run.folder.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = tuple(printable(str(Path(*path.parts[-depth:]))) for path in paths)
        if len(set(names)) == len(names):
            return names
    return tuple(f"{name} ({place})" for place, name in enumerate(names, 1))  # one folder, given twice


def _differences(runs: Sequence[RunRecords]) -> Iterator[Row]:
    options = [flat(run.config) for run in runs]
    for key in sorted({key for one in options for key in one}):
        values = tuple(printable(str(one[key])) if key in one else "-" for one in options)
        if len(set(values)) > 1:
            yield Row(key, values)


def _figures(runs: Sequence[RunRecords]) -> Iterator[Row]:
    yield Row("steps", tuple(run.steps[-1]["step"] if run.steps else None for run in runs))
    for name in _FINAL_PPO if runs[0].is_ppo else _FINAL_REWARD:
        yield from _known(f"{name}, mean of the last {_LAST_STEPS} steps", [_last_mean(run, name) for run in runs])
    evaluated = dict.fromkeys(
        name for run in runs for record in run.evaluations for name in record if name.startswith("eval/")
    )
    for name in evaluated:
        yield from _known(name, [_last(run.evaluations, name) for run in runs])


def _known(name: str, values: Sequence[float | None]) -> Iterator[Row]:
    if any(value is not None for value in values):
        yield Row(name, tuple(values))


def _last_mean(run: RunRecords, name: str) -> float | None:
    values = [step[name] for step in run.steps[-_LAST_STEPS:] if step.get(name) is not None]
    return sum(values) / len(values) if values else None


def _last(records: Sequence[Record], name: str) -> float | None:
    return next((record[name] for record in reversed(records) if record.get(name) is not None), None)


def _paired(name: str, first: RunRecords, other: RunRecords) -> Iterator[Paired]:
    for mode in ("greedy", "sampled"):
        one, two = (_by_prompt(run.answers("now", mode)) for run in (first, other))
        for field in ("score", "gold_score"):
            yield from _difference(name, f"prompts, {mode} {field}", _column(one, field), _column(two, field))
    right = [{_pair_key(pair): (1 + np.sign(pair["log_odds"])) / 2 for pair in run.pairs} for run in (first, other)]
    yield from _difference(name, "pairs, accuracy", *right)


def _by_prompt(answers: Sequence[Record]) -> dict[Any, Record]:
    """Answers by prompt, and by which of those with the same prompt it is."""
    seen: Counter[str] = Counter()
    found = {}
    for answer in answers:
        found[answer["prompt"], seen[answer["prompt"]]] = answer
        seen[answer["prompt"]] += 1
    return found


def _column(rows: dict[Any, Record], field: str) -> dict[Any, float]:
    return {prompt: row[field] for prompt, row in rows.items() if row.get(field) is not None}


def _pair_key(pair: Record) -> tuple[str, str, str]:
    return pair["prompt"], pair["chosen"], pair["rejected"]


def _difference(name: str, what: str, first: dict[Any, float], other: dict[Any, float]) -> Iterator[Paired]:
    shared = [key for key in first if key in other]
    if shared:
        found = bootstrap_mean([other[key] - first[key] for key in shared])
        yield Paired(name, what, len(shared), found.mean, found.low, found.high)
