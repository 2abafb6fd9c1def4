"""What rows look like to a run: counts, lengths, duplicates and problems, gathered row by row."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from rlhf_cli.config.data_sources import Format, Source
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_pattern
from rlhf_cli.config.sections import DataConfig, PreferenceDataConfig, PromptDataConfig, RowPolicy
from rlhf_cli.data import preferences, prompts
from rlhf_cli.data.bad_rows import BadRow
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import Ranking
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.read_rows import load_rows
from rlhf_cli.data.row_pipeline import Conversion, Filtered, Prepare
from rlhf_cli.data.row_store import Ids

NUM_EXAMPLES = 3
_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Problem:
    """A row that a run leaves out or refuses."""

    place: str
    what: str
    refused: bool


@dataclass
class RowInspection:
    """All that is known of the rows of one side, so far."""

    num_rows: int = 0
    num_others: int = 0  # rows that filters leave out
    num_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    num_refused: int = 0
    problems: list[Problem] = field(default_factory=list)  # the first of them
    fatal: list[str] = field(default_factory=list)  # what is wrong with a file as a whole
    formats: dict[str, tuple[Format, DataConfig]] = field(default_factory=dict)  # file -> format, with its options
    lengths: dict[str, array[int]] = field(default_factory=dict)  # what -> tokens, of rows that are too long too
    twice: list[tuple[str, str]] = field(default_factory=list)  # (place, place of the first row like it)
    contradicted: list[tuple[str, str]] = field(default_factory=list)  # (place, place of a row that says the opposite)
    prompts: dict[bytes, str] = field(default_factory=dict)  # digest -> place of the first row with it
    examples: list[tuple[str, Ranking | Prompt]] = field(default_factory=list)
    num_longer_wins: float = 0.0
    _rows: dict[bytes, str] = field(default_factory=dict)

    @property
    def is_refused(self) -> bool:
        """Whether a run would stop for these rows."""
        return bool(self.num_refused or self.fatal or not self.num_kept)

    def see(self, place: str, found: Ranking | Prompt | BadRow, limit: int, policy: RowPolicy, shown: int) -> None:
        """Look at one row; limit: the most tokens that a run takes, by the policy; shown: problems to remember."""
        self.num_rows += 1
        if not isinstance(found, BadRow):
            num_tokens = self._measure(found)
            if num_tokens <= limit:
                self._keep(place, found)
                return
            is_prompt = isinstance(found, Prompt)
            reason = f"too long, {num_tokens} tokens of at most {limit}"
            found = BadRow("prompt" if is_prompt else "prompt + answer", reason, policy, "data.too_long")
            found.reason = "too long"
        if found.policy is RowPolicy.drop:
            self.dropped[found.reason] += 1
        else:
            self.num_refused += 1
        if len(self.problems) < shown:
            self.problems.append(Problem(place, str(found), found.policy is not RowPolicy.drop))

    def _measure(self, found: Ranking | Prompt) -> int:
        """Note the lengths of a row; return the one that is limited."""
        if isinstance(found, Prompt):
            self._length("prompt", len(found.ids))
            return len(found.ids)
        self._length("prompt", len(found.answers[0].prompt_ids))
        for place, answer in enumerate(found.answers):
            name = "best answer" if place == 0 else "other answers"
            self._length(name, len(answer.response_ids))
        self._length("prompt + longest answer", found.num_tokens)
        return found.num_tokens

    def _length(self, name: str, tokens: int) -> None:
        self.lengths.setdefault(name, array("l")).append(tokens)

    def _keep(self, place: str, found: Ranking | Prompt) -> None:
        self.num_kept += 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append((place, found))
        self.prompts.setdefault(digest([found.prompt_key]), place)
        answers: list[Ids] = []
        if isinstance(found, Ranking):
            self.num_longer_wins += found.longer_wins
            answers = [answer.response_ids for answer in found.answers]
        first = self._rows.setdefault(digest([found.prompt_key, *answers]), place)
        if first != place:
            self.twice.append((place, first))
        opposite = self._rows.get(digest([found.prompt_key, *answers[::-1]])) if len(answers) == 2 else None
        if opposite is not None:
            self.contradicted.append((place, opposite))


def digest(parts: Iterable[object]) -> bytes:
    """Return a short digest of some parts."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).digest()[:16]


def look_at(config: DataConfig, sources: Sequence[Source], key: str, renderer: Renderer, shown: int) -> RowInspection:
    """Read all rows of some sources as a run would, through no cache; raise InputError for a path that leads nowhere.

    key: data.train or data.eval, for messages; shown: problems to remember.
    """
    look, unfit = RowInspection(), ""
    for source in sources:
        options = config.of_source(source)
        for path in resolve_pattern(source.path, key):
            rows = Filtered(load_rows(path, source.split or "", key), source.filter)
            try:
                for place, found in _found(look, path, rows, key, options, renderer):
                    look.see(place, found, limit_of(options), options.too_long, shown)
            except InputError as error:
                look.fatal.append(str(error))
            look.num_others += rows.others
            unfit = unfit or (f"{key}={path}: {rows.unfit}" if rows.unfit else "")
    if unfit and not look.num_rows:
        look.fatal.append(unfit)
    return look


def limit_of(config: DataConfig) -> int:
    """Return the most tokens that a row may have."""
    if isinstance(config, PreferenceDataConfig):
        return config.max_tokens
    assert isinstance(config, PromptDataConfig)
    return config.max_prompt_tokens


def _found(
    look: RowInspection, path: str, rows: Filtered, key: str, options: DataConfig, renderer: Renderer
) -> Iterator[tuple[str, Ranking | Prompt | BadRow]]:
    """Yield what every row of a file is, however long, and note its format."""
    label = f"{key}={path}"
    conversion: Conversion[Ranking] | Conversion[Prompt]
    if isinstance(options, PreferenceDataConfig):
        pairs: Prepare[Ranking] = preferences.preparing(renderer)
        conversion = Conversion(rows, label, replace(options, max_tokens=_NO_LIMIT), pairs)
    else:
        assert isinstance(options, PromptDataConfig)
        asked: Prepare[Prompt] = prompts.preparing(renderer)
        conversion = Conversion(rows, label, replace(options, max_prompt_tokens=_NO_LIMIT), asked)
    look.formats[path] = conversion.format, options
    yield from conversion
    conversion.check()


def shared_prompts(train: RowInspection, held_out: RowInspection) -> list[tuple[str, str]]:
    """Return (place, place) of a held-out row and of a row to train on for every prompt that is on both sides."""
    return [(place, train.prompts[key]) for key, place in held_out.prompts.items() if key in train.prompts]


def histogram(lengths: Sequence[int], num_bins: int = 8) -> list[tuple[int, int, int]]:
    """Return (first, last, count) of bins of equal width from the shortest to the longest."""
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high + 1 - low) // num_bins))
    counts = Counter((length - low) // width for length in lengths)
    last = (high - low) // width
    return [(low + n * width, min(high, low + (n + 1) * width - 1), counts[n]) for n in range(last + 1)]


def quantile(ordered: Sequence[int], share: float) -> int:
    """Return the length that so large a share of all is not longer than; ordered: from the shortest to the longest."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


Shown = Callable[[Ids], str]


def as_the_model_sees_it(example: Ranking | Prompt, renderer: Renderer) -> list[tuple[str, str]]:
    """Return (what, text) of a prompt and its answers, special tokens as they are written."""
    decode: Shown = partial(renderer.tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if isinstance(example, Prompt):
        return [("prompt", decode(example.ids))]
    names = (
        ["chosen", "rejected"]
        if len(example.answers) == 2
        else [f"answer {n + 1}" for n in range(len(example.answers))]
    )
    answers = [(name, decode(answer.response_ids)) for name, answer in zip(names, example.answers, strict=True)]
    return [("prompt", decode(example.answers[0].prompt_ids)), *answers]
