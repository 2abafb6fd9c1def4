"""What a run has written, read back: also from a run that is still going on, or that was killed. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from rlhf_cli.config.errors import InputError
from rlhf_cli.report.run_dir import CHECKS, CONFIG, EVENTS, METRICS, PAIRS, PLAN, ROLLOUTS, RUN, SAMPLES, SUMMARY
from rlhf_cli.report.status import read_status

Record = dict[str, Any]
_ENDS = 0.1  # share of the steps whose rollouts are compared, first against last
_MOST_ROLLOUTS = 200
_HUGE = 1e300
_OF_A_PAIR = ("score_chosen", "score_rejected", "log_odds", "tokens_chosen", "tokens_rejected")


@dataclass(frozen=True)
class RunRecords:
    """One run as its folder tells it; what a file does not say is empty here."""

    folder: Path
    config: Record
    run: Record  # command, start, versions
    status: Record
    summary: Record
    checks: list[Record]
    plan: list[str]
    metrics: list[Record]
    samples: list[Record]
    rollouts: tuple[list[Record], list[Record]]  # of the first steps, and of the last ones
    pairs: list[Record]
    events: list[Record]
    unreadable: dict[str, int] = field(default_factory=dict)  # file -> lines that are no records

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.resolve().name

    @property
    def is_ppo(self) -> bool:
        """Whether this is a PPO run, and not one of a reward model."""
        return "ppo" in self.config

    @cached_property
    def steps(self) -> list[Record]:
        """The records of steps, without those of evaluations."""
        return [record for record in self.metrics if "time/step" in record]

    @cached_property
    def evaluations(self) -> list[Record]:
        """The records of evaluations, one a step: later ones of the same step add to it."""
        by_step: dict[int, Record] = {}
        for record in self.metrics:
            if "time/step" not in record:
                by_step.setdefault(record["step"], {}).update(record)
        return [by_step[step] for step in sorted(by_step)]

    def answers(self, stage: str, mode: str) -> list[Record]:
        """The answers of a mode before training, or the newest after or during it (stage: now)."""
        if stage == "before":
            return [one for one in self.samples if one["stage"] == "before" and one["mode"] == mode]
        later: dict[tuple[int, bool], list[Record]] = {}
        for one in self.samples:
            if one["stage"] != "before" and one["mode"] == mode:
                later.setdefault(_order(one), []).append(one)
        asked = len(self.answers("before", mode))
        whole = [order for order, answers in later.items() if len(answers) == asked]  # none of a kill in the middle
        return later[max(whole or later)] if later else []


def _order(sample: Record) -> tuple[int, bool]:
    return sample.get("step", 0), sample["stage"] == "after"


def read_run(folder: Path) -> RunRecords:
    """Read the folder of a run; raise InputError where it is none.

    Lines that are no JSON records, which a crash of the machine may leave, are counted and left out.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder")
    if not (folder / RUN).is_file() or not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: not the folder of a run: it has no {RUN} or no {CONFIG}")
    unreadable: dict[str, int] = {}

    def lines(name: str, *wanted: str, numbers: tuple[str, ...] = ()) -> list[Record]:
        records, num_bad = _records(folder / name, wanted, numbers)
        if num_bad:
            unreadable[name] = num_bad
        return records

    return RunRecords(
        folder=folder,
        config=_config(folder / CONFIG),
        run=_document(folder / RUN),
        status=read_status(folder),
        summary=_document(folder / SUMMARY),
        checks=_document(folder / CHECKS).get("checks", []),
        plan=_document(folder / PLAN).get("lines", []),
        metrics=lines(METRICS, "step"),
        samples=lines(SAMPLES, "stage", "mode", "prompt", "response", "score"),
        rollouts=_ends(folder / ROLLOUTS),
        pairs=lines(PAIRS, "prompt", "chosen", "rejected", numbers=_OF_A_PAIR),
        events=lines(EVENTS, "step", "kind", "text"),
        unreadable=unreadable,
    )


def _records(file: Path, wanted: tuple[str, ...], numbers: tuple[str, ...]) -> tuple[list[Record], int]:
    if not file.is_file():
        return [], 0
    records, num_bad = [], 0
    with file.open("rb") as opened:
        for line in opened:
            if not line.endswith(b"\n"):  # of a process that still writes, or was killed
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            known = isinstance(record, dict) and all(name in record for name in wanted)
            if known and all(is_usual(record.get(name)) for name in numbers):
                records.append(record)
            else:
                num_bad += 1
    return records, num_bad


def is_usual(value: Any) -> bool:
    """Say whether a value is a number to reckon with: NaN is none, and differences of huge ones overflow."""
    return isinstance(value, int | float) and abs(value) < _HUGE


def _ends(file: Path) -> tuple[list[Record], list[Record]]:
    """Read the rollouts of the first and of the last steps; the file may be large, and the rest is not asked for."""
    if not file.is_file():
        return [], []
    with file.open("rb") as opened:
        count = sum(line.endswith(b"\n") for line in opened)
    wanted = min(round(_ENDS * count) or 1, count // 2, _MOST_ROLLOUTS)
    with file.open("rb") as opened:
        places = [(place, line) for place, line in enumerate(opened) if not wanted <= place < count - wanted]
    first = [_rollout(line) for place, line in places if place < wanted]
    last = [_rollout(line) for place, line in places if count - wanted <= place < count]
    return [one for one in first if one is not None], [one for one in last if one is not None]


def _rollout(line: bytes) -> Record | None:
    try:
        record: Record = json.loads(line)
        return record if {"step", "scores", "kl", "lengths"} <= record.keys() else None
    except (ValueError, RecursionError, AttributeError):
        return None


def _document(file: Path) -> Record:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(file: Path) -> Record:
    try:
        found = OmegaConf.to_container(OmegaConf.create(file.read_text("utf-8")), resolve=False)
    except (OSError, ValueError, YAMLError) as error:
        raise InputError(f"{file}: damaged: {' '.join(str(error).split())[:200]}") from error
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}
