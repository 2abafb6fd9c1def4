"""What a run has written, read back: also from a run that is still going on, or that was killed. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from rlhf_cli.config.errors import InputError
from rlhf_cli.report.run_dir import CHECKS, CONFIG, EVENTS, METRICS, PAIRS, PLAN, ROLLOUTS, RUN, SAMPLES, SUMMARY
from rlhf_cli.system.run_status import read_status

Record = dict[str, Any]
_ENDS = 0.1  # share of the steps whose rollouts are compared, first against last
_MOST_ROLLOUTS = 200
_HUGE = 1e300
_OF_A_PAIR = ("score_chosen", "score_rejected", "log_odds", "tokens_chosen", "tokens_rejected")


@dataclass
class Samples:
    """Answers to held-out prompts, by mode: those before training, and the newest that are whole.

    A long run asks many times; of the answers in between the gold scores alone are kept.
    """

    before: dict[str, list[Record]] = field(default_factory=dict)
    now: dict[str, list[Record]] = field(default_factory=dict)
    _gold: dict[tuple[int, str], list[Any]] = field(default_factory=dict)  # of sampled answers, by step and stage
    _coming: dict[str, list[Record]] = field(default_factory=dict)  # of the newest time, while they are being read

    def add(self, sample: Record) -> None:
        """Take in the next line of samples.jsonl."""
        mode, stage, step = sample["mode"], sample["stage"], sample.get("step", 0)
        if mode == "sampled":
            self._gold.setdefault((step, stage), []).append(sample.get("gold_score"))
        if stage == "before":
            self.before.setdefault(mode, []).append(sample)
            return
        coming = self._coming.setdefault(mode, [])
        if coming and (coming[0]["stage"], coming[0].get("step", 0)) != (stage, step):
            coming = self._coming[mode] = []
        coming.append(sample)
        if mode not in self.now or len(coming) >= len(self.before.get(mode, [])):
            self.now[mode] = coming  # what a kill has cut short only where there is nothing else

    def gold_at(self, step: int) -> list[float]:
        """Return the gold scores of the sampled answers of a step, prompt by prompt."""
        found = next((self._gold[step, one] for one in ("during", "after", "before") if (step, one) in self._gold), [])
        return [score for score in found if is_usual(score)]


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
    samples: Samples
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
        return (self.samples.before if stage == "before" else self.samples.now).get(mode, [])


def read_run(folder: Path) -> RunRecords:
    """Read the folder of a run; raise InputError where it is none.

    Lines that are no JSON records, which a crash of the machine may leave, are counted and left out.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder")
    if not (folder / RUN).is_file() or not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: not the folder of a run: it has no {RUN} or no {CONFIG}")
    unreadable: dict[str, int] = {}

    def each(name: str, *wanted: str, numbers: tuple[str, ...] = ()) -> Iterator[Record]:
        for record in _records(folder / name, wanted, numbers):
            if record is None:
                unreadable[name] = unreadable.get(name, 0) + 1
            else:
                yield record

    samples = Samples()
    for sample in each(SAMPLES, "stage", "mode", "prompt", "response", "score"):
        samples.add(sample)
    return RunRecords(
        folder=folder,
        config=_config(folder / CONFIG),
        run=_document(folder / RUN),
        status=read_status(folder),
        summary=_document(folder / SUMMARY),
        checks=_document(folder / CHECKS).get("checks", []),
        plan=_document(folder / PLAN).get("lines", []),
        metrics=list(each(METRICS, "step")),
        samples=samples,
        rollouts=_ends(folder / ROLLOUTS),
        pairs=list(each(PAIRS, "prompt", "chosen", "rejected", numbers=_OF_A_PAIR)),
        events=list(each(EVENTS, "step", "kind", "text")),
        unreadable=unreadable,
    )


def _records(file: Path, wanted: tuple[str, ...], numbers: tuple[str, ...]) -> Iterator[Record | None]:
    """Yield the lines of a file that are records with these fields; None for every other one."""
    if not file.is_file():
        return
    with file.open("rb") as opened:
        for line in opened:
            if not line.endswith(b"\n"):  # of a process that still writes, or was killed
                continue
            record = _record(line) or {}
            known = all(name in record for name in wanted)
            yield record if known and all(is_usual(record.get(name)) for name in numbers) else None


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


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
    records = [(place, _record(line)) for place, line in places if place < count]
    keys = {"step", "scores", "kl", "lengths"}
    known = [(place, one) for place, one in records if one is not None and keys <= one.keys()]
    return [one for place, one in known if place < wanted], [one for place, one in known if place >= wanted]


def _document(file: Path) -> Record:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(file: Path) -> Record:
    try:
        found = OmegaConf.to_container(OmegaConf.create(file.read_text("utf-8")), resolve=False)
    except (ValueError, YAMLError) as error:
        raise InputError(f"{file}: damaged: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, dict):
        return {}
    return {str(key): value for key, value in found.items() if key != "defaults"}  # a word to Hydra, and no option
