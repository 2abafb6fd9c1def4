"""Preference rows to ranked answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Self

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import require
from rlhf_cli.config.sections import PreferenceDataConfig
from rlhf_cli.data.bad_rows import BadRow, Row, column
from rlhf_cli.data.conversation import Renderer, is_empty
from rlhf_cli.data.ratings import as_number
from rlhf_cli.data.row_formats import Case, compared, empty
from rlhf_cli.data.row_pipeline import Prepare
from rlhf_cli.data.row_store import Ids
from rlhf_cli.data.splits import Splits, load_splits
from rlhf_cli.data.token_batches import TokenSequence
from rlhf_cli.data.token_cache import RowCache


@dataclass(frozen=True)
class Ranking:
    """One prompt with K answers, the best first; a preference pair has K = 2."""

    answers: tuple[TokenSequence, ...]
    longer_wins: float  # share of its pairs whose better text is the longer one, a half at equal length
    prompt_key: str  # equal for rows with the same prompt
    margin: float = 0.0  # by which a better score should exceed a worse one
    confidence: float = 1.0  # the probability that the order is right
    category: str | None = None  # a word for the kind of row
    weight: float = 1.0  # in the loss, before it is divided by the mean weight
    ranks: tuple[int, ...] = ()  # of the answers, 0 the best, equal where tied; (): none is

    def to_record(self) -> tuple[list[Ids], list[Any]]:
        """Return the ids of the prompt, then of every answer, and the other fields."""
        ids = [self.answers[0].prompt_ids, *(answer.response_ids for answer in self.answers)]
        numbers = [self.margin, self.confidence, self.category, self.weight]
        return ids, [self.longer_wins, self.prompt_key, *numbers, self.ranks]

    @classmethod
    def from_record(cls, ids: list[Ids], fields: list[Any]) -> Self:
        """Return the ranking that has these parts."""
        longer_wins, prompt_key, margin, confidence, category, weight, ranks = fields
        answers = tuple(TokenSequence(ids[0], response_ids) for response_ids in ids[1:])
        return cls(answers, longer_wins, prompt_key, margin, confidence, category, weight, tuple(ranks))

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt with the longest answer."""
        return max(len(answer) for answer in self.answers)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The places (better, worse) of every pair of answers that are not tied."""
        pairs = list(combinations(range(len(self.answers)), 2))
        return [(a, b) for a, b in pairs if self.ranks[a] < self.ranks[b]] if self.ranks else pairs


def load_preferences(config: PreferenceDataConfig, renderer: Renderer, seed: int) -> Splits[Ranking]:
    """Load, render, filter and split; raise InputError where no row is left to train on."""
    return load_splits(config, seed, preparing(renderer), RowCache(config, renderer, Ranking))


def preparing(renderer: Renderer) -> Prepare[Ranking]:
    """Return what makes the converter of a source's rows."""

    def prepare(config: PreferenceDataConfig, row_format: Format) -> tuple[dict[str, str], Callable[[Row], Ranking]]:
        return wanted_columns(config, row_format), lambda row: _ranking(row, config, row_format, renderer)

    return prepare


@dataclass(frozen=True)
class Judged:
    """What a row of preferences says, and the numbers that go with it."""

    case: Case
    margin: float
    confidence: float
    category: str | None
    weight: float


def judged(row: Row, config: PreferenceDataConfig, row_format: Format) -> Judged:
    """Return what a row says; raise BadRow, for empty and equal answers too."""
    case = compared(row, config, row_format)
    empty_fields = [field for field, text in case.answers if not text.strip()]
    if empty_fields or is_empty(case.messages):
        raise empty((empty_fields or [config.prompt_column])[0], config)
    texts = [text for _, text in case.answers]
    if len(set(texts)) < len(texts):
        what = "chosen == rejected" if config.ranking_column is None else "equal answers"
        raise BadRow(case.answers[-1][0], what, config.equal, "data.equal")
    return Judged(
        case,
        margin=_number(row, config.margin_column, 0.0, (-1e4, 1e4)),
        confidence=_number(row, config.confidence_column, 1.0, (0.5, 1.0)),
        category=_word(row, config.category_column),
        weight=_number(row, config.weight_column, 1.0, (0.0, 1e4)),
    )


def _ranking(row: Row, config: PreferenceDataConfig, row_format: Format, renderer: Renderer) -> Ranking:
    """Return the ranking of a row; raise BadRow."""
    said = judged(row, config, row_format)
    messages, texts = said.case.messages, [text for _, text in said.case.answers]
    prompt_ids = renderer.prompt_ids(messages)
    ranking = Ranking(
        answers=tuple(TokenSequence(prompt_ids, renderer.response_ids(text)) for text in texts),
        longer_wins=0.5,
        prompt_key=json.dumps(messages),
        margin=said.margin,
        confidence=said.confidence,
        category=said.category,
        weight=said.weight,
        ranks=said.case.ranks,
    )
    if ranking.num_tokens > config.max_tokens:
        raise BadRow("prompt + answer", "too long", config.too_long, "data.too_long")
    answers = [answer.response_ids for answer in ranking.answers]
    if len(set(answers)) < len(answers):  # their texts differ by an end token, or by spaces that the template cuts
        what = "chosen == rejected" if config.ranking_column is None else "equal answers"
        raise BadRow(said.case.answers[-1][0], what, config.equal, "data.equal")
    return replace(ranking, longer_wins=_longer_wins(texts, ranking.pairs))


def wanted_columns(config: PreferenceDataConfig, row_format: Format) -> dict[str, str]:
    """Return the columns that rows must have, each with its option; the prompt may stand inside the answers.

    Raises InputError for numbers of one pair where rows are ratings.
    """
    if row_format in (Format.rated, Format.rated_rows):
        for key in ("margin_column", "confidence_column"):
            value = getattr(config, key)
            require(value is None, f"data.{key}", value, f"unset: rows are read as {row_format.name}")
    names: tuple[str, ...] = ("margin_column", "confidence_column", "category_column", "weight_column")
    if row_format is Format.columns:
        answers = ("ranking_column", "prompt_column") if config.ranking_column else ("chosen_column", "rejected_column")
        names = (*answers, *names)
    columns = {name: getattr(config, name) for name in names}
    return {column: f"data.{name}" for name, column in columns.items() if column is not None}


def _longer_wins(texts: list[str], pairs: list[tuple[int, int]]) -> float:
    lengths = [len(text) for text in texts]
    wins = [0.5 if lengths[a] == lengths[b] else float(lengths[a] > lengths[b]) for a, b in pairs]
    return sum(wins) / len(wins)


def _number(row: Row, name: str | None, default: float, bounds: tuple[float, float]) -> float:
    if name is None:
        return default
    value: Any = column(row, name)
    low, high = bounds
    number = as_number(value)
    if not low <= number <= high:
        raise BadRow(name, f"wanted a number between {low:g} and {high:g}, got {value!r}")
    return number


def _word(row: Row, name: str | None) -> str | None:
    if name is None:
        return None
    value: Any = column(row, name)
    if value is not None and not isinstance(value, str | int | bool):
        raise BadRow(name, f"wanted a word, got {type(value).__name__}")
    return None if value is None else str(value)
