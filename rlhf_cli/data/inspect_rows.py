"""What a run would read from its rows: counts, lengths, duplicates and problems."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rlhf_cli.config.data_sources import Format, Source
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DataConfig, PreferenceDataConfig, RowPolicy
from rlhf_cli.data import preferences, prompts
from rlhf_cli.data.bad_rows import BadRow
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import Ranking
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.row_pipeline import Conversion, SourceFile, files_of

NUM_EXAMPLES = 3
_NO_LIMIT = 2**31 - 1  # tokens


@dataclass(frozen=True)
class Problem:
    """A row that a run drops or refuses."""

    place: str
    what: str
    refused: bool


@dataclass
class RowInspection:
    """Everything that is known about the rows of one side so far."""

    num_problems_shown: int
    num_rows: int = 0
    num_filtered_out: int = 0
    num_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    num_refused: int = 0
    problems: list[Problem] = field(default_factory=list)  # the first ones
    fatal: list[str] = field(default_factory=list)  # errors that concern a file as such
    formats: dict[str, tuple[Format, DataConfig]] = field(default_factory=dict)  # of each file
    lengths: dict[str, array[int]] = field(default_factory=dict)  # text -> tokens per row
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # (place, first place)
    contradictions: list[tuple[str, str]] = field(default_factory=list)  # places
    prompts: dict[bytes, str] = field(default_factory=dict)  # digest -> first place
    examples: list[tuple[str, Ranking | Prompt]] = field(default_factory=list)
    num_longer_wins: float = 0.0
    _rows: dict[bytes, str] = field(default_factory=dict)  # digest -> first place

    @property
    def is_refused(self) -> bool:
        """Whether a run would stop because of these rows."""
        return bool(self.num_refused or self.fatal or not self.num_kept)

    def add(self, place: str, row: Ranking | Prompt | BadRow, options: DataConfig) -> None:
        """Count one row, converted without a limit of its length."""
        self.num_rows += 1
        if not isinstance(row, BadRow):
            num_tokens, limit = self._measure(row), getattr(options, _limit(options))
            if num_tokens <= limit:
                self._keep(place, row)
                return
            reason = f"too long, {num_tokens} tokens of at most {limit}"
            name = "prompt" if isinstance(row, Prompt) else "prompt + answer"
            row = BadRow(name, reason, options.too_long, "data.too_long")
            row.reason = "too long"
        is_dropped = row.policy is RowPolicy.drop
        self.dropped.update([row.reason] if is_dropped else [])
        self.num_refused += not is_dropped
        if len(self.problems) < self.num_problems_shown:
            self.problems.append(Problem(place, str(row), not is_dropped))

    def _measure(self, row: Ranking | Prompt) -> int:
        """Register the lengths of a row, and return the one that is limited."""
        if isinstance(row, Prompt):
            lengths = [("prompt", len(row.ids))]
        else:
            best, *others = (len(answer.response_ids) for answer in row.answers)
            lengths = [("prompt", len(row.answers[0].prompt_ids)), ("best answer", best)]
            lengths += [("other answers", length) for length in others]
            lengths.append(("prompt + longest answer", row.num_tokens))
        for name, length in lengths:
            self.lengths.setdefault(name, array("l")).append(length)
        return lengths[-1][1]

    def _keep(self, place: str, row: Ranking | Prompt) -> None:
        self.num_kept += 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append((place, row))
        answers = [answer.response_ids for answer in row.answers] if isinstance(row, Ranking) else []
        self.num_longer_wins += row.longer_wins if isinstance(row, Ranking) else 0.0
        self.prompts.setdefault(_digest(row.prompt_key), place)
        first = self._rows.setdefault(_digest(row.prompt_key, *answers), place)
        if first != place:
            self.duplicates.append((place, first))
        opposite = self._rows.get(_digest(row.prompt_key, *answers[::-1])) if len(answers) == 2 else None
        if opposite is not None:
            self.contradictions.append((place, opposite))


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()[:16]


def _limit(options: DataConfig) -> str:
    """Return the option that limits the length of a row."""
    return "max_tokens" if isinstance(options, PreferenceDataConfig) else "max_prompt_tokens"


def inspect_rows(
    config: DataConfig, sources: Sequence[Source], option: str, renderer: Renderer, num_problems_shown: int
) -> RowInspection:
    """Read all rows of some sources as a run would, but without a cache.

    option: data.train or data.eval, for messages. Raises InputError for a missing path.
    """
    found, filter_error = RowInspection(num_problems_shown), ""
    for file in [file for source in sources for file in files_of(config, source, option)]:
        try:
            conversion = _unlimited_conversion(file, renderer)
            found.formats[file.path] = conversion.format, file.options
            for place, row in conversion:
                found.add(place, row, file.options)
        except InputError as error:
            found.fatal.append(str(error))
        else:
            found.num_filtered_out += conversion.num_filtered_out
            if conversion.filter_error and not filter_error:
                filter_error = f"{file.label}: {conversion.filter_error}"
    if filter_error and not found.num_rows:
        found.fatal.append(filter_error)
    return found


def _unlimited_conversion(file: SourceFile, renderer: Renderer) -> Conversion[Ranking | Prompt]:
    prepare: Any = preferences.prepare if isinstance(file.options, PreferenceDataConfig) else prompts.prepare
    unlimited: dict[str, Any] = {_limit(file.options): _NO_LIMIT}
    options = replace(file.options, **unlimited)
    return Conversion(replace(file, options=options), partial(prepare, renderer))


def shared_prompts(train: RowInspection, held_out: RowInspection) -> list[tuple[str, str]]:
    """Return (place of a held-out row, place of a training row) for every shared prompt."""
    return [(place, train.prompts[key]) for key, place in held_out.prompts.items() if key in train.prompts]


def histogram(lengths: Sequence[int], num_bins: int = 8) -> list[tuple[int, int, int]]:
    """Return (first, last, count) of bins of equal width from the shortest to the longest."""
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high + 1 - low) // num_bins))
    counts = Counter((length - low) // width for length in lengths)
    last = (high - low) // width
    return [(low + n * width, min(high, low + (n + 1) * width - 1), counts[n]) for n in range(last + 1)]


def quantile(ordered: Sequence[int], share: float) -> int:
    """Return the length that this share of all lengths does not exceed; ordered: ascending."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def rendered_texts(example: Ranking | Prompt, renderer: Renderer) -> list[tuple[str, str]]:
    """Return (name, text) of a prompt and its answers as the model sees them."""
    decode = partial(renderer.tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if isinstance(example, Prompt):
        return [("prompt", decode(example.ids))]
    is_pair = len(example.answers) == 2
    names = ["chosen", "rejected"] if is_pair else [f"answer {n + 1}" for n in range(len(example.answers))]
    answers = [(name, decode(answer.response_ids)) for name, answer in zip(names, example.answers, strict=True)]
    return [("prompt", decode(example.answers[0].prompt_ids)), *answers]
