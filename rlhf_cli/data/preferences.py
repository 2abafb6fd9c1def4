"""Rows of preferences to ranked answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, Self

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import require
from rlhf_cli.config.sections import PreferenceDataConfig
from rlhf_cli.data.bad_rows import BadRow, Row, column
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.ratings import as_number
from rlhf_cli.data.row_formats import Comparison, empty_field, is_empty, read_comparison
from rlhf_cli.data.row_store import Ids
from rlhf_cli.data.splits import Splits, load_splits
from rlhf_cli.data.token_batches import TokenSequence
from rlhf_cli.data.token_cache import RowCache


@dataclass(frozen=True)
class Ranking:
    """One prompt with K answers, the best first. A preference pair has K = 2."""

    answers: tuple[TokenSequence, ...]
    longer_wins: float  # share of pairs whose better text is longer; 0.5 for equal lengths
    prompt_key: str  # equal for rows with the same prompt
    margin: float = 0.0  # by which the better score should exceed the worse one
    confidence: float = 1.0  # probability that the order is right
    category: str | None = None  # for the report
    weight: float = 1.0  # in the loss, before division by the mean weight
    ranks: tuple[int, ...] = ()  # of the answers: 0 is the best; () where nothing is tied

    def to_record(self) -> tuple[list[Ids], list[Any]]:
        """Return the ids of the prompt and of every answer, and the other fields."""
        ids = [self.answers[0].prompt_ids, *(answer.response_ids for answer in self.answers)]
        numbers = [self.margin, self.confidence, self.category, self.weight]
        return ids, [self.longer_wins, self.prompt_key, *numbers, self.ranks]

    @classmethod
    def from_record(cls, ids: list[Ids], fields: list[Any]) -> Self:
        """Return the ranking of a record."""
        longer_wins, prompt_key, margin, confidence, category, weight, ranks = fields
        answers = tuple(TokenSequence(ids[0], response_ids) for response_ids in ids[1:])
        return cls(answers, longer_wins, prompt_key, margin, confidence, category, weight, tuple(ranks))

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt with the longest answer."""
        return max(len(answer) for answer in self.answers)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The indices (better, worse) of all pairs of answers that are not tied."""
        pairs = list(combinations(range(len(self.answers)), 2))
        return [(a, b) for a, b in pairs if self.ranks[a] < self.ranks[b]] if self.ranks else pairs


def load_preferences(config: PreferenceDataConfig, renderer: Renderer, seed: int) -> Splits[Ranking]:
    """Load, render, filter and split preferences; raise InputError where no row is left."""
    return load_splits(config, seed, partial(prepare, renderer), RowCache(config, renderer, Ranking))


def prepare(
    renderer: Renderer, config: PreferenceDataConfig, row_format: Format
) -> tuple[dict[str, str], Callable[[Row], Ranking]]:
    """Return the required columns of a source, and the function that makes rankings of its rows."""
    return required_columns(config, row_format), lambda row: _ranking(row, config, row_format, renderer)


def read_preference(row: Row, config: PreferenceDataConfig, row_format: Format) -> tuple[Comparison, dict[str, Any]]:
    """Return the compared answers of a row, and its margin, confidence, weight and category.

    Raises BadRow, also for empty and for equal answers.
    """
    comparison = read_comparison(row, config, row_format)
    empty_fields = [field for field, text in comparison.answers if not text.strip()]
    if empty_fields or is_empty(comparison.messages):
        raise empty_field((empty_fields or [config.prompt_column])[0], config)
    _require_different([text for _, text in comparison.answers], comparison, config)
    category: Any = None if config.category_column is None else column(row, config.category_column)
    if category is not None and not isinstance(category, str | int | bool):
        raise BadRow(config.category_column or "", f"wanted a word, got {type(category).__name__}")
    return comparison, {
        "margin": _number(row, config.margin_column, 0.0, (-1e4, 1e4)),
        "confidence": _number(row, config.confidence_column, 1.0, (0.5, 1.0)),
        "weight": _number(row, config.weight_column, 1.0, (0.0, 1e4)),
        "category": None if category is None else str(category),
    }


def _ranking(row: Row, config: PreferenceDataConfig, row_format: Format, renderer: Renderer) -> Ranking:
    comparison, values = read_preference(row, config, row_format)
    messages, texts = comparison.messages, [text for _, text in comparison.answers]
    prompt_ids = renderer.prompt_ids(messages)
    answers = tuple(TokenSequence(prompt_ids, renderer.response_ids(text)) for text in texts)
    ranking = Ranking(answers, 0.5, json.dumps(messages), ranks=comparison.ranks, **values)
    if ranking.num_tokens > config.max_tokens:
        raise BadRow("prompt + answer", "too long", config.too_long, "data.too_long")
    # Texts that differ by an end token, or by spaces that the template strips, have equal ids.
    _require_different([answer.response_ids for answer in ranking.answers], comparison, config)
    lengths = [len(text) for text in texts]
    wins = [0.5 if lengths[a] == lengths[b] else float(lengths[a] > lengths[b]) for a, b in ranking.pairs]
    return replace(ranking, longer_wins=sum(wins) / len(wins))


def _require_different(answers: list[Any], comparison: Comparison, config: PreferenceDataConfig) -> None:
    if len(set(answers)) < len(answers):
        what = "chosen == rejected" if config.ranking_column is None else "equal answers"
        raise BadRow(comparison.answers[-1][0], what, config.equal, "data.equal")


def required_columns(config: PreferenceDataConfig, row_format: Format) -> dict[str, str]:
    """Return the columns that rows must have, each with the option that names it.

    The prompt may be part of the answers. Raises InputError where rows are ratings and a margin or
    confidence is set, which belong to one pair.
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


def _number(row: Row, name: str | None, default: float, bounds: tuple[float, float]) -> float:
    if name is None:
        return default
    value: Any = column(row, name)
    low, high = bounds
    number = as_number(value)
    if not low <= number <= high:
        raise BadRow(name, f"wanted a number between {low:g} and {high:g}, got {value!r}")
    return number
