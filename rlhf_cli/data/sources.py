"""Rows from files, folders and the Hub, through `datasets`."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import datasets

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_path
from rlhf_cli.config.sections import DataConfig
from rlhf_cli.data.cache import Loaded, RowCache, Storable
from rlhf_cli.data.json_rows import read_json, read_jsonl
from rlhf_cli.data.rows import NUM_SHOWN, BadRow, Rejected, Row, check_columns, summary
from rlhf_cli.engine.files import sha256
from rlhf_cli.report.text import one_line

_LOADERS = {".csv": "csv", ".parquet": "parquet"}
_READERS = {".jsonl": read_jsonl, ".json": read_json}


def load_rows(path: str, split: str, key: str) -> list[tuple[str, Row | BadRow]]:
    """Return (place, row) of every row of one source; `key` (data.train, data.eval) names the option in messages.

    path: a .jsonl, .json, .csv or .parquet file, a folder written by `save_to_disk`, `pkg://...`, or a Hub id.
    split: which one of a DatasetDict or a Hub id; single files have none. Places count from 1: `pairs.jsonl:3` is a
    line, `pairs.csv: row 3` a row. Raises InputError for a source that cannot be read at all.
    """
    source = resolve_path(path, key)
    datasets.disable_progress_bars()
    try:
        rows = _load(source, path, split, key)
    except InputError:
        raise
    except Exception as error:  # datasets wraps parser, schema and network errors in classes of many modules
        cause = error.__cause__ or error
        raise InputError(f"{key}={path}: cannot read rows: {_reason(cause, source)}") from error
    if not rows:
        raise InputError(f"{key}={path}: no rows")
    return rows


def _load(source: str, name: str, split: str, key: str) -> list[tuple[str, Row | BadRow]]:
    file = Path(source)
    if file.is_file() and file.suffix in _READERS:
        return _READERS[file.suffix](file, name)
    dataset = _dataset(source, split)
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise InputError(f"{key}={name}: no split '{split}'; there are: {', '.join(dataset)}; set {key}_split")
        dataset = dataset[split]
    return [(f"{name}: row {number}", row) for number, row in enumerate(dataset.to_list(), 1)]


def _dataset(source: str, split: str) -> Any:
    path = Path(source)
    if path.is_file():
        loader = _LOADERS.get(path.suffix)
        if loader is None:
            known = ", ".join([*_READERS, *_LOADERS])
            raise InputError(f"{source}: unknown file type '{path.suffix}', wanted one of {known}")
        options = {"keep_default_na": False, "na_values": [""]} if loader == "csv" else {}  # "None", "NA" are texts
        return datasets.load_dataset(loader, data_files=source, split="train", **options)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return datasets.load_from_disk(source)
    return datasets.load_dataset(source, split=split)


def _content(source: str, split: str) -> str | None:
    """Return what changes with the rows of a source: a SHA-256 of a file or of a folder's files, or the fingerprint of
    a Hub id; None where it cannot be read, as load_rows will say.

    A saved folder has a fingerprint too, but the same one where a function was mapped anew and gave other rows.
    """
    path = Path(source)
    try:
        if path.is_file():
            return f"{split} {path.suffix} {sha256(path)}"
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            listed = "".join(f"{sha256(file)} {file.relative_to(path)}\n" for file in files)
            return f"{split} {hashlib.sha256(listed.encode()).hexdigest()}"
        datasets.disable_progress_bars()
        return f"{split} {_dataset(source, split)._fingerprint}"
    except Exception:  # of as many kinds as in load_rows
        return None


def _reason(error: BaseException, source: str) -> str:
    if isinstance(error, UnicodeDecodeError) and source.endswith(".csv"):
        with Path(source).open("rb") as file:
            bad = [number for number, line in enumerate(file, 1) if not _is_utf8(line)]
        return f"{len(bad)} lines are not UTF-8 text, the first of them {', '.join(map(str, bad[:NUM_SHOWN]))}"
    return one_line(error, 300) or f"the file is empty or not of its type ({type(error).__name__})"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


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


class HasPrompt(Storable, Protocol):
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
    config: DataConfig,
    seed: int,
    wanted: dict[str, str],
    convert: Callable[[Row], Example],
    cache: RowCache[Example],
) -> Sides[Example]:
    """Load `data.train`, and hold out `data.eval` or, where it is unset, a share of the prompts of `data.train`.

    wanted: the columns that every row must have, each with the option that names it.
    convert: makes an example of a row, or raises BadRow; what it makes is taken from the cache where it is there.
    Raises InputError where rows are bad (the first 20, all counted) or nothing is left to train on.
    """
    train, notes = _examples(config.train, config.train_split, "data.train", wanted, convert, cache)
    if config.eval is None:
        kept, held_out = split_by_prompt([example.prompt_key for example in train], config.eval_fraction, seed)
        held, train = [train[index] for index in held_out], [train[index] for index in kept]
        notes = [*notes, f"held out: {len(held)} of them ({config.eval_fraction:g} of the prompts)"]
    else:
        held, more = _examples(config.eval, config.eval_split, "data.eval", wanted, convert, cache)
        notes = [*notes, *more]
    if not train:
        raise InputError(f"nothing is left to train on: {'; '.join(notes)}")
    return Sides(train, held, [*notes, *cache.notes])


def _examples(
    path: str,
    split: str,
    option: str,
    wanted: dict[str, str],
    convert: Callable[[Row], Example],
    cache: RowCache[Example],
) -> tuple[list[Example], list[str]]:
    source = resolve_path(path, option)
    content = partial(_content, source, split)
    key = cache.key(content)
    loaded = cache.read(key)
    if loaded is None:
        loaded = _converted(load_rows(path, split, option), f"{option}={path}", wanted, convert)
        if key is not None and key == cache.key(content):  # nobody has changed it while it was read
            cache.write(key, loaded)
    return loaded.examples, [summary(path, len(loaded.examples), loaded.dropped)]


def _converted(
    rows: list[tuple[str, Row | BadRow]], source: str, wanted: dict[str, str], convert: Callable[[Row], Example]
) -> Loaded[Example]:
    check_columns([row for _, row in rows if not isinstance(row, BadRow)], wanted, source)
    rejected, examples = Rejected(), []
    for place, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            examples.append(convert(row))
        except BadRow as bad:
            rejected.add(place, bad)
    rejected.raise_if_refused(source, len(rows))
    return Loaded(examples, dict(rejected.dropped))
