"""Read a run folder, also of a running or killed run. Imports no torch."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from rlhf_cli.config.errors import InputError
from rlhf_cli.report import run_dir
from rlhf_cli.system.run_status import read_status

Record = dict[str, Any]
_END_SHARE, _MAX_END_STEPS = 0.1, 200  # the first and the last steps, whose rollouts are compared
_HUGE = 1e300
_PAIR_NUMBERS = ("score_chosen", "score_rejected", "log_odds", "tokens_chosen", "tokens_rejected")


@dataclass
class Samples:
    """Held-out responses by mode: before training, and of the newest complete evaluation.

    A long run has many evaluations; of those in between only the gold scores are kept.
    """

    before: dict[str, list[Record]] = field(default_factory=dict)
    now: dict[str, list[Record]] = field(default_factory=dict)
    _gold: dict[tuple[int, str], list[Any]] = field(default_factory=dict)  # of sampled responses, by step and stage
    _newest: dict[str, list[Record]] = field(default_factory=dict)  # of the evaluation that is being read

    def add(self, sample: Record) -> None:
        """Add the next line of samples.jsonl."""
        mode, stage, step = sample["mode"], sample["stage"], sample.get("step", 0)
        if mode == "sampled":
            self._gold.setdefault((step, stage), []).append(sample.get("gold_score"))
        if stage == "before":
            self.before.setdefault(mode, []).append(sample)
            return
        newest = self._newest.setdefault(mode, [])
        if newest and (newest[0]["stage"], newest[0].get("step", 0)) != (stage, step):
            newest = self._newest[mode] = []
        newest.append(sample)
        if mode not in self.now or len(newest) >= len(self.before.get(mode, [])):
            self.now[mode] = newest  # an incomplete evaluation counts only if there is no other

    def gold_at(self, step: int) -> list[float]:
        """Return the gold scores of the sampled responses of a step, prompt by prompt."""
        stages = [stage for stage in ("during", "after", "before") if (step, stage) in self._gold]
        return [score for score in self._gold[step, stages[0]] if is_usual(score)] if stages else []


class RunRecords:
    """The files of one run folder. What a file does not contain is empty here."""

    def __init__(self, folder: Path) -> None:
        """Read a run folder. Raises InputError if it is not one.

        Lines that are not JSON records, which a crash of the machine may leave, are counted and
        skipped.
        """
        if not folder.is_dir():
            raise InputError(f"{folder}: no such run folder")
        if not (folder / run_dir.RUN).is_file() or not (folder / run_dir.CONFIG).is_file():
            raise InputError(f"{folder}: not a run folder: it has no {run_dir.RUN} or no {run_dir.CONFIG}")
        self.folder = folder
        self.unreadable: Counter[str] = Counter()  # lines that are not records, by file
        self.samples = Samples()
        for sample in self._records(run_dir.SAMPLES, "stage", "mode", "prompt", "response", "score"):
            self.samples.add(sample)
        self.config = _read_config(folder / run_dir.CONFIG)
        self.run = _read_json(folder / run_dir.RUN)  # command, start, versions
        self.status = read_status(folder)
        self.summary = _read_json(folder / run_dir.SUMMARY)
        self.checks: list[Record] = _read_json(folder / run_dir.CHECKS).get("checks", [])
        self.plan: list[str] = _read_json(folder / run_dir.PLAN).get("lines", [])
        self.metrics = list(self._records(run_dir.METRICS, "step"))
        self.rollouts = _first_and_last_rollouts(folder / run_dir.ROLLOUTS)
        self.pairs = list(self._records(run_dir.PAIRS, "prompt", "chosen", "rejected", numbers=_PAIR_NUMBERS))
        self.events = list(self._records(run_dir.EVENTS, "step", "kind", "text"))

    def _records(self, name: str, *required: str, numbers: tuple[str, ...] = ()) -> Iterator[Record]:
        """Yield the records of a file that have the required keys, and usual numbers."""
        for line in run_dir.complete_lines(self.folder / name):
            record = _parse(line)
            if all(key in record for key in required) and all(is_usual(record.get(key)) for key in numbers):
                yield record
            else:
                self.unreadable[name] += 1

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.folder.resolve().name

    @property
    def is_ppo(self) -> bool:
        """Whether this is a PPO run; otherwise it is a reward-model run."""
        return "ppo" in self.config

    @cached_property
    def steps(self) -> list[Record]:
        """The records of training steps."""
        return [record for record in self.metrics if "time/step" in record]

    @cached_property
    def evaluations(self) -> list[Record]:
        """The records of evaluations, one per step: several records of a step are merged."""
        by_step: dict[int, Record] = {}
        for record in self.metrics:
            if "time/step" not in record:
                by_step.setdefault(record["step"], {}).update(record)
        return [by_step[step] for step in sorted(by_step)]

    def responses(self, stage: str, mode: str) -> list[Record]:
        """Return the held-out responses of a mode. stage: before (training) or now (the newest)."""
        return (self.samples.before if stage == "before" else self.samples.now).get(mode, [])


def is_usual(value: Any) -> bool:
    """Return whether a value is a number, not NaN, and so small that sums do not overflow."""
    return isinstance(value, int | float) and abs(value) < _HUGE


def has_values(record: Record, *names: str) -> bool:
    """Return whether a record has all of these, and none is null."""
    return all(record.get(name) is not None for name in names)


def _parse(line: bytes | str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _first_and_last_rollouts(file: Path) -> tuple[list[Record], list[Record]]:
    """Read the first and the last rollouts. The file may be too large to keep the others."""
    numbered = enumerate(run_dir.complete_lines(file), 1)
    first = list(islice(numbered, _MAX_END_STEPS))
    last = deque(chain(first, numbered), _MAX_END_STEPS)
    count = last[-1][0] if last else 0
    wanted = min(max(1, round(_END_SHARE * count)), count // 2, _MAX_END_STEPS)
    ends = ([_parse(line) for _, line in lines] for lines in (first[:wanted], list(last)[len(last) - wanted :]))
    complete = [[record for record in end if {"step", "scores", "kl", "lengths"} <= record.keys()] for end in ends]
    return complete[0], complete[1]


def _read_json(file: Path) -> Record:
    try:
        return _parse(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _read_config(file: Path) -> Record:
    try:
        config = OmegaConf.to_container(OmegaConf.create(file.read_text("utf-8")), resolve=False)
    except (ValueError, YAMLError) as error:
        raise InputError(f"{file}: damaged: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(config, dict):
        return {}
    return {str(key): value for key, value in config.items() if key != "defaults"}  # `defaults` is for Hydra
