"""Rows from files, folders and the Hub, through `datasets`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import datasets

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_path
from rlhf_cli.config.sections import DataConfig, RowPolicy

_LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
Row = dict[str, Any]


def load_rows(path: str, split: str, key: str) -> list[Row]:
    """Return the rows of one source; `key` (data.train, data.eval) names the option in error messages.

    path: a .jsonl, .json, .csv or .parquet file, a folder written by `save_to_disk`, `pkg://...`, or a Hub id.
    split: which one of a DatasetDict or a Hub id; single files have none. Raises InputError.
    """
    source = resolve_path(path, key)
    datasets.disable_progress_bars()
    try:
        dataset = _load(source, split)
    except InputError:
        raise
    except Exception as error:  # datasets wraps parser, schema and network errors in classes of many modules
        cause = error.__cause__ or error
        raise InputError(f"{key}={path}: cannot read rows: {_reason(cause)}") from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise InputError(f"{key}={path}: no split '{split}'; there are: {', '.join(dataset)}; set {key}_split")
        dataset = dataset[split]
    rows: list[Row] = dataset.to_list()
    if not rows:
        raise InputError(f"{key}={path}: no rows")
    return rows


def _load(source: str, split: str) -> Any:
    path = Path(source)
    if path.is_file():
        loader = _LOADERS.get(path.suffix)
        if loader is None:
            raise InputError(f"{source}: unknown file type '{path.suffix}', wanted one of {', '.join(_LOADERS)}")
        return datasets.load_dataset(loader, data_files=source, split="train")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return datasets.load_from_disk(source)
    return datasets.load_dataset(source, split=split)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or f"the file is empty or not of its type ({type(error).__name__})"


class RowCounter:
    """Counts what was kept and what was left out, by reason; carries out the policy of each reason."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.counts: Counter[str] = Counter()

    def reject(self, index: int, reason: str, policy: RowPolicy, option: str) -> None:
        """Count a bad row, or raise InputError where the option's policy is `error`."""
        if policy is RowPolicy.error:
            raise InputError(f"{self.source}: row {index} is {reason} and {option}=error; mend it or set {option}=drop")
        self.counts[reason] += 1

    def summary(self, kept: int) -> str:
        """One line: `pairs.jsonl: 812 rows kept, 3 dropped (2 too long, 1 equal)`."""
        dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(self.counts.items()))
        return (
            f"{self.source}: {kept} rows kept, {sum(self.counts.values())} dropped{f' ({dropped})' if dropped else ''}"
        )


def split_by_prompt(prompts: list[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Return row indices to train on and to hold out: `fraction` of the distinct prompts, at least one unless 0,
    and never all of them.

    Rows with equal prompts go to the same side. The choice depends on the seed and the set of prompts alone.
    """
    distinct = sorted(set(prompts))
    num_held_out = 0 if fraction == 0 else max(1, round(fraction * len(distinct)))
    num_held_out = max(0, min(num_held_out, len(distinct) - 1))
    held_out = set(random.Random(seed).sample(distinct, num_held_out))
    sides: tuple[list[int], list[int]] = ([], [])
    for index, prompt in enumerate(prompts):
        sides[prompt in held_out].append(index)
    return sides


def column(row: Row, name: str, key: str, option: str) -> Any:
    """Return a column of a row; raise InputError that names the columns there are."""
    if name not in row:
        raise InputError(f"{key}: no column '{name}'; there are: {', '.join(row)}; set {option}")
    return row[name]


class HasPrompt(Protocol):
    """An example that knows which prompt it belongs to."""

    @property
    def prompt_key(self) -> str:
        """Equal for rows with the same prompt."""


Example = TypeVar("Example", bound=HasPrompt)


@dataclass(frozen=True)
class Sides(Generic[Example]):
    """What to train on and what is held out; no prompt is on both sides where one file is split."""

    train: list[Example]
    eval: list[Example]
    notes: list[str]  # what was kept and dropped, one line a source


def load_sides(
    config: DataConfig, seed: int, convert: Callable[[Row, str, int, RowCounter], Example | None]
) -> Sides[Example]:
    """Load `data.train`, and hold out `data.eval` or, where it is unset, a share of the prompts of `data.train`.

    convert: makes an example of (row, where it stands, its index), or counts it as rejected and returns None.
    Raises InputError where nothing is left to train on.
    """
    train, notes = _examples(config.train, config.train_split, "data.train", convert)
    if config.eval is None:
        kept, held_out = split_by_prompt([example.prompt_key for example in train], config.eval_fraction, seed)
        held, train = [train[index] for index in held_out], [train[index] for index in kept]
        notes = [*notes, f"held out: {len(held)} of them ({config.eval_fraction:g} of the prompts)"]
    else:
        held, more = _examples(config.eval, config.eval_split, "data.eval", convert)
        notes = [*notes, *more]
    if not train:
        raise InputError(f"nothing is left to train on: {'; '.join(notes)}")
    return Sides(train, held, notes)


def _examples(
    source: str, split: str, key: str, convert: Callable[[Row, str, int, RowCounter], Example | None]
) -> tuple[list[Example], list[str]]:
    counter = RowCounter(source)
    converted = [
        convert(row, f"{key}={source}: row {index}", index, counter)
        for index, row in enumerate(load_rows(source, split, key))
    ]
    examples = [example for example in converted if example is not None]
    return examples, [counter.summary(len(examples))]
