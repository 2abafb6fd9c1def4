"""The sides of a run, from one source or many."""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from rlhf_cli.config.data_sources import Source
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_path, resolve_pattern
from rlhf_cli.config.sections import DataConfig
from rlhf_cli.data.bad_rows import BadRow, Rejected, summary
from rlhf_cli.data.read_rows import content_of, load_rows
from rlhf_cli.data.row_pipeline import Conversion, Filtered, Prepare
from rlhf_cli.data.row_store import Rows, Storable, number_by_key
from rlhf_cli.data.sampler import shuffled
from rlhf_cli.data.token_cache import Account, Draft, Loaded, RowCache


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


@dataclass(frozen=True)
class Splits(Generic[Example]):
    """What to train on and what is held out; no prompt is on both sides where one file is split."""

    train: Sequence[Example]
    eval: Sequence[Example]
    notes: list[str]  # what was kept and dropped, one line a source


def load_splits(config: DataConfig, seed: int, prepare: Prepare[Example], cache: RowCache[Example]) -> Splits[Example]:
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
    return Splits(rows.at(_mixed(train, kept, f"{seed}/mix/train")), held_out, [*notes, *cache.notes])


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
        content = partial(content_of, resolve_path(path, option), split)
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


def _note(name: str, kept: int, accounts: list[Account], weight: float) -> str:
    dropped: dict[str, int] = {}
    for account in accounts:
        for reason, count in account.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    formats = " and ".join(sorted({account.format for account in accounts}))
    note = summary(name, kept, dropped, sum(account.others for account in accounts), formats)
    return note if weight == 1 else f"{note}; weight {weight:g}"
