"""The rows to train on and the held-out rows of a run, from one source or many."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np

from rlhf_cli.config.data_sources import Source
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_path
from rlhf_cli.config.sections import DataConfig
from rlhf_cli.data.read_rows import content_of
from rlhf_cli.data.row_pipeline import Conversion, Prepare, SourceFile, describe, files_of
from rlhf_cli.data.row_store import IndexedRows, Rows, Storable
from rlhf_cli.data.sampler import shuffled
from rlhf_cli.data.token_cache import LoadedRows, RowCache


def split_by_prompt(prompts: Iterable[str], fraction: float, seed: int) -> tuple[array[int], array[int]]:
    """Return the indices of rows to train on and of held-out rows.

    Holds out `fraction` of the distinct prompts: those with the smallest hashes. That is at least
    one prompt unless the fraction is 0, and never all of them. Rows with equal prompts go to the
    same side. The choice depends on nothing but the seed and the set of prompts.
    """
    key = str(seed).encode()
    digests = (hashlib.blake2b(prompt.encode(), digest_size=8, key=key).digest() for prompt in prompts)
    hashes = np.fromiter(map(int.from_bytes, digests), np.uint64)
    distinct = np.unique(hashes)
    num_held_out = 0 if fraction == 0 else max(1, round(fraction * len(distinct)))
    num_held_out = max(0, min(num_held_out, len(distinct) - 1))
    is_held_out = np.isin(hashes, distinct[:num_held_out])
    return array("q", np.flatnonzero(~is_held_out)), array("q", np.flatnonzero(is_held_out))


class HasPrompt(Storable, Protocol):
    """A row that knows which prompt it belongs to."""

    @property
    def prompt_key(self) -> str:
        """A text that is equal for rows with the same prompt."""


Example = TypeVar("Example", bound=HasPrompt)


@dataclass(frozen=True)
class Splits(Generic[Example]):
    """The rows to train on, and the held-out rows."""

    train: Sequence[Example]
    eval: Sequence[Example]
    notes: list[str]  # what was kept and dropped, one line per source


def load_splits(config: DataConfig, seed: int, prepare: Prepare[Example], cache: RowCache[Example]) -> Splits[Example]:
    """Load `data.train` and `data.eval`; without the latter, hold out a share of the prompts.

    prepare: makes the converter for the rows of a source. Rows in the cache are not converted
    again. Raises InputError where rows are bad (shows the first 20 and counts all) or none is left.
    """
    loader = _Loader(config, prepare, cache)
    train = loader.load_all(config.train_sources(), "data.train")
    held_out = loader.load_all(config.eval_sources(), "data.eval")
    rows = Rows([part for source in train for part in source.parts])
    notes = loader.notes
    if held_out:
        eval_rows = Rows([part for source in held_out for part in source.parts])
        eval_rows = eval_rows.select(_weighted(held_out, range(len(eval_rows)), f"{seed}/mix/eval"))
        kept: Sequence[int] = range(len(rows))
    else:
        kept, indices = split_by_prompt((row.prompt_key for row in rows), config.eval_fraction, seed)
        eval_rows = rows.select(indices)
        notes = [*notes, f"held out: {len(eval_rows)} of them ({config.eval_fraction:g} of the prompts)"]
    if not kept:
        raise InputError(f"nothing is left to train on: {'; '.join(notes)}")
    return Splits(rows.select(_weighted(train, kept, f"{seed}/mix/train")), eval_rows, [*notes, *cache.notes])


@dataclass(frozen=True)
class _LoadedSource(Generic[Example]):
    parts: list[IndexedRows[Example]]  # one per file
    weight: float

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))


def _weighted(sources: list[_LoadedSource[Example]], kept: Sequence[int], key: str) -> Sequence[int]:
    """Return the indices, among those kept, that one pass reads.

    A weight of 2.25 takes each row of a source twice, and a quarter of them, drawn by the key, once
    more.
    """
    if all(source.weight == 1 for source in sources):
        return kept
    indices, start = array("q"), 0
    for number, source in enumerate(sources):
        end = start + source.size
        own = array("q", kept[bisect_left(kept, start) : bisect_left(kept, end)])
        start = end
        if own:
            repeats, remainder = divmod(max(1, round(source.weight * len(own))), len(own))
            indices.extend(own * repeats)
            indices.extend(own[index] for index in sorted(shuffled(len(own), f"{key}/{number}")[:remainder]))
    return indices


class _Loader(Generic[Example]):
    """Loads one source after another, and notes what each gave."""

    def __init__(self, config: DataConfig, prepare: Prepare[Example], cache: RowCache[Example]) -> None:
        self.config = config
        self.prepare = prepare
        self.cache = cache
        self.notes: list[str] = []

    def load_all(self, sources: list[Source], option: str) -> list[_LoadedSource[Example]]:
        """Load all files of some sources; raise InputError where the filters leave no row."""
        loaded, filter_error = [], ""
        for source in sources:
            files = files_of(self.config, source, option)
            parts = [self._load_file(file) for file in files]
            for file, part in zip(files, parts, strict=True):
                if part.summary.filter_error and not filter_error:
                    filter_error = f"{file.label}: {part.summary.filter_error}"
            loaded.append(_LoadedSource([part.rows for part in parts], source.weight))
            name = source.path if len(files) == 1 else f"{source.path} ({len(files)} files)"
            note = describe(name, loaded[-1].size, [part.summary for part in parts])
            self.notes.append(note if source.weight == 1 else f"{note}; weight {source.weight:g}")
        if filter_error and not any(source.size for source in loaded):
            raise InputError(filter_error)
        return loaded

    def _load_file(self, file: SourceFile) -> LoadedRows[Example]:
        content = partial(content_of, resolve_path(file.path, file.option), file.source.split or "")
        find_key = partial(self.cache.key, file.options, file.source.filter, content)
        key = find_key()
        return self.cache.read(key) or self.cache.write(
            key,
            convert=lambda append: Conversion(file, self.prepare).convert_all(append),
            is_current=lambda: find_key() == key,
        )
