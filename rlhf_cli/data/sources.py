"""Rows from files, folders and the Hub, through `datasets`; the sides of a run from one source or many."""

from __future__ import annotations

import hashlib
import random
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import datasets

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import COMPRESSIONS, resolve_path, resolve_pattern
from rlhf_cli.config.sections import DataConfig
from rlhf_cli.config.sources import Format, Source
from rlhf_cli.data.cache import Account, Draft, Loaded, RowCache
from rlhf_cli.data.csv_rows import read_csv
from rlhf_cli.data.detect import NUM_DETECTED, detect
from rlhf_cli.data.groups import grouped
from rlhf_cli.data.json_rows import read_json, read_jsonl
from rlhf_cli.data.order import shuffled
from rlhf_cli.data.rows import NUM_SHOWN, BadRow, Columns, Rejected, Row, column, summary
from rlhf_cli.data.store import Rows, Storable, number_by_key
from rlhf_cli.engine.files import sha256
from rlhf_cli.report.text import one_line

Place = tuple[str, Row | BadRow]  # where a row stands, and what stands there
_LOADERS = {".parquet": "parquet"}
_READERS = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv}
_COMPRESSED = (".jsonl", ".json")  # that are read compressed too
_BLOCK_ROWS = 1000  # of a table that become Python objects at a time


def load_rows(path: str, split: str, key: str) -> Iterator[Place]:
    """Yield (place, row) of every row of one source; `key` (data.train, data.eval) names the option in messages.

    path: a .jsonl or .json file, as it is or compressed, a .csv or .parquet file, a folder written by `save_to_disk`,
    `pkg://...`, or a Hub id. split: which one of a DatasetDict or a Hub id; single files have none. Places count from
    1: `pairs.jsonl:3` is a line, `pairs.csv: row 3` a row. Raises InputError for a source that cannot be read at all.
    """
    source = resolve_path(path, key)
    datasets.disable_progress_bars()
    is_empty = True
    try:
        for place in _load(source, path, split, key):
            is_empty = False
            yield place
    except InputError:
        raise
    except Exception as error:  # datasets wraps parser, schema and network errors in classes of many modules
        cause = error.__cause__ or error
        raise InputError(f"{key}={path}: cannot read rows: {_reason(cause, source)}") from error
    if is_empty:
        raise InputError(f"{key}={path}: no rows")


def _load(source: str, name: str, split: str, key: str) -> Iterator[Place]:
    file = Path(source)
    if file.is_file() and _suffix(file) in _READERS:
        yield from _READERS[_suffix(file)](file, name)
        return
    dataset = _dataset(source, split)
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise InputError(f"{key}={name}: no split '{split}'; there are: {', '.join(dataset)}; set {key}_split")
        dataset = dataset[split]
    number = 0
    for table in dataset.with_format("arrow").iter(_BLOCK_ROWS):
        for row in table.to_pylist():
            number += 1
            yield f"{name}: row {number}", row


def _suffix(file: Path) -> str:
    """Return what a file's name says of its rows, whether they are compressed or not."""
    inner = Path(file.stem).suffix
    return inner if file.suffix in COMPRESSIONS and inner in _COMPRESSED else file.suffix


def _dataset(source: str, split: str) -> Any:
    path = Path(source)
    if path.is_file():
        loader = _LOADERS.get(path.suffix)
        if loader is None:
            known = ", ".join([*_READERS, *_LOADERS])
            raise InputError(f"{source}: unknown file type '{path.suffix}', wanted one of {known}")
        return datasets.load_dataset(loader, data_files=source, split="train")
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
            return f"{split} {''.join(path.suffixes[-2:])} {sha256(path)}"
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


def split_by_prompt(prompts: Iterable[str], fraction: float, seed: int) -> tuple[array[int], array[int]]:
    """Return row indices to train on and to hold out: `fraction` of the distinct prompts, at least one unless 0,
    and never all of them.

    Rows with equal prompts go to the same side. The choice depends on the seed and the set of prompts alone.
    """
    numbers, num_distinct = number_by_key(prompts)
    num_held_out = 0 if fraction == 0 else max(1, round(fraction * num_distinct))
    num_held_out = max(0, min(num_held_out, num_distinct - 1))
    held_out = set(random.Random(seed).sample(range(num_distinct), num_held_out))
    sides = array("q"), array("q")
    for index, number in enumerate(numbers):
        sides[number in held_out].append(index)
    return sides


class HasPrompt(Storable, Protocol):
    """An example that knows which prompt it belongs to."""

    @property
    def prompt_key(self) -> str:
        """Equal for rows with the same prompt."""


Example = TypeVar("Example", bound=HasPrompt)
Made = TypeVar("Made")
# options and format of a source -> columns that its rows must have, each with the option that names it; and what makes
# something of a row, or raises BadRow
Prepare = Callable[[Any, Format], tuple[dict[str, str], Callable[[Row], Made]]]


@dataclass(frozen=True)
class Sides(Generic[Example]):
    """What to train on and what is held out; no prompt is on both sides where one file is split."""

    train: Sequence[Example]
    eval: Sequence[Example]
    notes: list[str]  # what was kept and dropped, one line a source


def load_sides(config: DataConfig, seed: int, prepare: Prepare[Example], cache: RowCache[Example]) -> Sides[Example]:
    """Load `data.train`, and hold out `data.eval` or, where it is unset, a share of the prompts of `data.train`.

    prepare: makes what converts the rows of a source; what it makes is taken from the cache where it is there.
    Raises InputError where rows are bad (the first 20, all counted) or nothing is left to train on.
    """
    loader = _Loader(config, prepare, cache)
    train, held = (
        [loader.load(source, key) for source in sources]
        for key, sources in (("data.train", config.train_sources()), ("data.eval", config.eval_sources()))
    )
    _require_fit(train, "data.train")
    _require_fit(held, "data.eval")
    rows = Rows([part for source in train for part in source.parts])
    if held:
        kept: Sequence[int] = range(len(rows))
        held_out: Sequence[Example] = _drawn(held, f"{seed}/mix/eval")
        notes = loader.notes
    else:
        kept, places = split_by_prompt((row.prompt_key for row in rows), config.eval_fraction, seed)
        held_out = rows.at(places)
        notes = [*loader.notes, f"held out: {len(held_out)} of them ({config.eval_fraction:g} of the prompts)"]
    if not kept:
        raise InputError(f"nothing is left to train on: {'; '.join(notes)}")
    return Sides(rows.at(_mixed(train, kept, f"{seed}/mix/train")), held_out, [*notes, *cache.notes])


@dataclass(frozen=True)
class _Part(Generic[Example]):
    """The examples of one source."""

    parts: list[Sequence[Example]]  # one a file
    weight: float
    unfit: str  # that its filter left no row of a file, with what is there; ""

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))


def _require_fit(sources: list[_Part[Example]], option: str) -> None:
    """Raise InputError where filters leave nothing of all sources."""
    unfit = next((source.unfit for source in sources if source.unfit), "")
    if unfit and not any(source.size for source in sources):
        raise InputError(f"{option}={unfit}")


def _drawn(sources: list[_Part[Example]], key: str) -> Sequence[Example]:
    """Return the rows of all sources, each drawn as often as its weight says."""
    rows = Rows([part for source in sources for part in source.parts])
    return rows.at(_mixed(sources, range(len(rows)), key))


def _mixed(sources: list[_Part[Example]], kept: Sequence[int], key: str) -> Sequence[int]:
    """Return the places, of those that are kept, that a pass reads: each source's as often as its weight says.

    weight 2.25: all of them twice, and a quarter of them, drawn by the key, once more.
    """
    if all(source.weight == 1 for source in sources):
        return kept
    mixed, start = array("q"), 0
    for number, source in enumerate(sources):
        end = start + source.size
        own = array("q", kept[bisect_left(kept, start) : bisect_left(kept, end)])
        start = end
        wanted = max(1, round(source.weight * len(own))) if own else 0
        for _ in range(wanted // max(1, len(own))):
            mixed.extend(own)
        rest = shuffled(len(own), f"{key}/{number}")[: wanted % max(1, len(own))]
        mixed.extend(own[place] for place in sorted(rest))
    return mixed


class _Loader(Generic[Example]):
    """Loads source after source, and notes what each gave."""

    def __init__(self, config: DataConfig, prepare: Prepare[Example], cache: RowCache[Example]) -> None:
        self.config = config
        self.prepare = prepare
        self.cache = cache
        self.notes: list[str] = []

    def load(self, source: Source, option: str) -> _Part[Example]:
        """Load all files of one source."""
        options, split = self.config.of_source(source), source.split or ""
        paths = resolve_pattern(source.path, option)
        found = [self._load(path, split, option, options, source.filter) for path in paths]
        parts = [one.examples for one in found]
        name = source.path if len(paths) == 1 else f"{source.path} ({len(paths)} files)"
        self.notes.append(_note(name, sum(map(len, parts)), [one.account for one in found], source.weight))
        unfit = next(
            (f"{path}: {one.account.unfit}" for path, one in zip(paths, found, strict=True) if one.account.unfit), ""
        )
        return _Part(parts, source.weight, unfit)

    def _load(self, path: str, split: str, option: str, options: DataConfig, wanted: dict[str, Any]) -> Loaded[Example]:
        content = partial(_content, resolve_path(path, option), split)
        key = self.cache.key(options, wanted, content)
        loaded = self.cache.read(key)
        if loaded is not None:
            return loaded
        draft = self.cache.draft(key)
        try:
            rows = Filtered(load_rows(path, split, option), wanted)
            account = self._convert(rows, f"{option}={path}", options, draft)
            if key is not None and key == self.cache.key(options, wanted, content):  # nobody has changed it meanwhile
                self.cache.keep(draft, key, account)
        finally:
            draft.close()
        return draft.loaded(account)

    def _convert(self, rows: Filtered, label: str, options: DataConfig, draft: Draft[Example]) -> Account:
        conversion, rejected = Conversion(rows, label, options, self.prepare), Rejected()
        for place, found in conversion:
            if isinstance(found, BadRow):
                rejected.add(place, found)
            else:
                draft.spool.append(found)
        conversion.check()
        rejected.raise_if_refused(label, conversion.num_rows)
        return Account(dict(rejected.dropped), rows.others, rows.unfit, conversion.format.name)


class Conversion(Generic[Made]):
    """The rows of one file, each with what is made of it or what is wrong with it."""

    def __init__(self, rows: Filtered, label: str, options: DataConfig, prepare: Prepare[Made]) -> None:
        """Tell the format; raise InputError where that cannot be, or where the file cannot be read."""
        self.num_rows = 0
        self._label = label
        self.format, self._places = recognised(rows, label, options)
        wanted, self._convert = prepare(options, self.format)
        self._columns = Columns(wanted)

    def __iter__(self) -> Iterator[tuple[str, Made | BadRow]]:
        for place, row in self._places:
            self.num_rows += 1
            try:
                if isinstance(row, BadRow):
                    raise row
                self._columns.see(row)
                yield place, self._convert(row)
            except BadRow as bad:
                yield place, bad
            except RecursionError:
                yield place, BadRow("", "nested too deeply")

    def check(self) -> None:
        """Raise InputError where no row has a wanted column; once all were read."""
        self._columns.check(self._label)


def recognised(rows: Iterable[Place], label: str, options: DataConfig) -> tuple[Format, Iterator[Place]]:
    """Return the format of the rows of a source, told from the first of them if need be, and all rows.

    Rows that stand for one answer each come grouped by their prompt. Raises InputError for rows of several formats.
    """
    there = iter(rows)
    first = list(islice(there, NUM_DETECTED))
    row_format = options.format
    if row_format is Format.auto:
        try:
            row_format = detect([row for _, row in first if not isinstance(row, BadRow)], options)
        except InputError as error:
            raise InputError(f"{label}: {error}") from error
    places = chain(first, there)
    return row_format, grouped(places, options) if row_format is Format.rated_rows else places


class Filtered:
    """The rows of a source that have the wanted values; a row without such a column is bad."""

    def __init__(self, rows: Iterator[Place], wanted: dict[str, Any]) -> None:
        self.others = 0  # rows that have others
        self._rows = rows
        self._wanted = {name: value if isinstance(value, list) else [value] for name, value in wanted.items()}
        self._seen: dict[str, dict[str, None]] = {name: {} for name in wanted}
        self._num_fit = 0

    def __iter__(self) -> Iterator[Place]:
        for place, row in self._rows:
            fits: Row | BadRow | None = row
            try:
                if not isinstance(row, BadRow) and not self._fits(row):
                    fits = None
            except BadRow as bad:
                fits = bad
            if fits is None:
                self.others += 1
            else:
                self._num_fit += 1
                yield place, fits

    def _fits(self, row: Row) -> bool:
        fit = True
        for name, values in self._wanted.items():
            value = column(row, name)
            if len(self._seen[name]) < NUM_SHOWN:
                self._seen[name][one_line(value, 40)] = None
            fit = fit and any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)
        return fit

    @property
    def unfit(self) -> str:
        """That no row was left, with what their columns hold; "" where one was."""
        if self._num_fit or not self.others:
            return ""
        there = "; ".join(f"{name} has: {', '.join(values)}" for name, values in self._seen.items())
        return f"no row fits the filter {self._wanted}; {there}"


def _note(name: str, kept: int, accounts: list[Account], weight: float) -> str:
    dropped: dict[str, int] = {}
    for account in accounts:
        for reason, count in account.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    formats = " and ".join(sorted({account.format for account in accounts}))
    note = summary(name, kept, dropped, sum(account.others for account in accounts), formats)
    return note if weight == 1 else f"{note}; weight {weight:g}"
