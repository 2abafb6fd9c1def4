"""Preference rows to ranked answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Self

from rlhf_cli.config.sections import PreferenceDataConfig
from rlhf_cli.data.cache import Ids, RowCache
from rlhf_cli.data.conversation import Message, Renderer, as_messages, is_empty, split_answers
from rlhf_cli.data.rows import BadRow, Row, column
from rlhf_cli.data.sources import Sides, load_sides
from rlhf_cli.data.tokens import Sequence


@dataclass(frozen=True)
class Ranking:
    """One prompt with K answers, the best first; a preference pair has K = 2."""

    answers: tuple[Sequence, ...]
    longer_wins: float  # share of its pairs whose better text is the longer one, a half at equal length
    prompt_key: str  # equal for rows with the same prompt
    margin: float = 0.0  # by which a better score should exceed a worse one
    confidence: float = 1.0  # the probability that the order is right
    category: str | None = None  # a word for the kind of row

    def parts(self) -> tuple[list[Ids], list[Any]]:
        """Return the ids of the prompt, then of every answer, and the other fields."""
        ids = [self.answers[0].prompt_ids, *(answer.response_ids for answer in self.answers)]
        return ids, [self.longer_wins, self.prompt_key, self.margin, self.confidence, self.category]

    @classmethod
    def of_parts(cls, ids: list[Ids], rest: list[Any]) -> Self:
        """Return the ranking that has these parts."""
        return cls(tuple(Sequence(ids[0], response_ids) for response_ids in ids[1:]), *rest)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt with the longest answer."""
        return max(len(answer) for answer in self.answers)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The places (better, worse) of every pair of answers."""
        return list(combinations(range(len(self.answers)), 2))


def load_preferences(config: PreferenceDataConfig, renderer: Renderer, seed: int) -> Sides[Ranking]:
    """Load, render, filter and split; raise InputError where no row is left to train on."""

    def convert(row: Row) -> Ranking:
        messages, answers = _answers(row, config)
        empty = [field for field, text in answers if not text.strip()]
        if empty or is_empty(messages):
            raise _empty((empty or [config.prompt_column])[0], config)
        texts = [text for _, text in answers]
        if len(set(texts)) < len(texts):
            what = "chosen == rejected" if config.ranking_column is None else "equal answers"
            raise BadRow(answers[-1][0], what, config.equal, "data.equal")
        prompt_ids = renderer.prompt_ids(messages)
        ranking = Ranking(
            answers=tuple(Sequence(prompt_ids, renderer.response_ids(text)) for text in texts),
            longer_wins=_longer_wins(texts),
            prompt_key=json.dumps(messages),
            margin=_number(row, config.margin_column, 0.0, (-1e4, 1e4)),
            confidence=_number(row, config.confidence_column, 1.0, (0.5, 1.0)),
            category=_word(row, config.category_column),
        )
        if ranking.num_tokens > config.max_tokens:
            raise BadRow("prompt + answer", "too long", config.too_long, "data.too_long")
        return ranking

    return load_sides(config, seed, _wanted_columns(config), convert, RowCache(config, renderer, Ranking))


def _wanted_columns(config: PreferenceDataConfig) -> dict[str, str]:
    """Return the columns that rows must have, each with its option; the prompt may stand inside the answers."""
    names = ("ranking_column", "prompt_column") if config.ranking_column else ("chosen_column", "rejected_column")
    columns = {
        name: getattr(config, name) for name in (*names, "margin_column", "confidence_column", "category_column")
    }
    return {column: f"data.{name}" for name, column in columns.items() if column is not None}


def _answers(row: Row, config: PreferenceDataConfig) -> tuple[list[Message], list[tuple[str, str]]]:
    """Return prompt messages and (column, text) of every answer, the best first."""
    if config.ranking_column is not None:
        return _ranked(row, config, config.ranking_column)
    fields = config.prompt_column, config.chosen_column, config.rejected_column
    prompt, chosen, rejected = row.get(fields[0]), column(row, fields[1]), column(row, fields[2])
    for field, value in zip(fields[1:], (chosen, rejected), strict=True):
        if value in (None, "", []):
            raise _empty(field, config)
    if prompt is None and config.prompt_column in row and isinstance(chosen, str):
        raise _empty(config.prompt_column, config)
    messages, better, worse = split_answers(prompt, chosen, rejected, fields)
    return messages, [(fields[1], better), (fields[2], worse)]


def _ranked(row: Row, config: PreferenceDataConfig, ranking_column: str) -> tuple[list[Message], list[tuple[str, str]]]:
    texts, prompt = column(row, ranking_column), column(row, config.prompt_column)
    for field, value in ((ranking_column, texts), (config.prompt_column, prompt)):
        if value in (None, []):
            raise _empty(field, config)
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise BadRow(ranking_column, "wanted a list of two or more strings, the best first")
    return as_messages(prompt, config.prompt_column), [(ranking_column, text) for text in texts]


def _empty(field: str, config: PreferenceDataConfig) -> BadRow:
    return BadRow(field, "empty", config.empty, "data.empty")


def _longer_wins(texts: list[str]) -> float:
    wins = [0.5 if len(a) == len(b) else float(len(a) > len(b)) for a, b in combinations(texts, 2)]
    return sum(wins) / len(wins)


def _number(row: Row, name: str | None, default: float, bounds: tuple[float, float]) -> float:
    if name is None:
        return default
    value: Any = column(row, name)
    low, high = bounds
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRow(name, f"wanted a number between {low:g} and {high:g}, got {value!r}")
    return float(value)


def _word(row: Row, name: str | None) -> str | None:
    if name is None:
        return None
    value: Any = column(row, name)
    if value is not None and not isinstance(value, str | int | bool):
        raise BadRow(name, f"wanted a word, got {type(value).__name__}")
    return None if value is None else str(value)
