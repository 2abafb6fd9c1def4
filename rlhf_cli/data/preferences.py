"""Preference rows to ranked answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import PreferenceDataConfig
from rlhf_cli.data.conversation import Message, Renderer, as_messages, is_empty, split_answers
from rlhf_cli.data.sources import Row, RowCounter, Sides, column, load_sides
from rlhf_cli.data.tokens import Sequence


@dataclass(frozen=True)
class Ranking:
    """One prompt with K answers, the best first; a preference pair has K = 2."""

    answers: tuple[Sequence, ...]
    longer_wins: float  # share of its pairs whose better text is the longer one, a half at equal length
    prompt_key: str  # equal for rows with the same prompt
    margin: float = 0.0  # by which a better score should exceed a worse one
    confidence: float = 1.0  # the probability that the order is right

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

    def convert(row: Row, where: str, index: int, counter: RowCounter) -> Ranking | None:
        found = _answers(row, where, config)
        if found is None:
            counter.reject(index, "empty", config.empty, "data.empty")
            return None
        messages, texts = found
        if len(set(texts)) < len(texts):
            what = "chosen == rejected" if config.ranking_column is None else "equal answers"
            counter.reject(index, what, config.equal, "data.equal")
            return None
        prompt_ids = renderer.prompt_ids(messages)
        ranking = Ranking(
            answers=tuple(Sequence(prompt_ids, renderer.response_ids(text)) for text in texts),
            longer_wins=_longer_wins(texts),
            prompt_key=json.dumps(messages),
            margin=_number(row, config.margin_column, where, "margin_column", 0.0, (-1e4, 1e4)),
            confidence=_number(row, config.confidence_column, where, "confidence_column", 1.0, (0.5, 1.0)),
        )
        if ranking.num_tokens > config.max_tokens:
            counter.reject(index, "too long", config.too_long, "data.too_long")
            return None
        return ranking

    return load_sides(config, seed, convert)


def _answers(row: Row, where: str, config: PreferenceDataConfig) -> tuple[list[Message], list[str]] | None:
    """Return prompt messages and the answers' texts, the best first; None where one of them is empty."""
    if config.ranking_column is not None:
        return _ranked(row, where, config, config.ranking_column)
    chosen = column(row, config.chosen_column, where, "data.chosen_column")
    rejected = column(row, config.rejected_column, where, "data.rejected_column")
    null_prompt = config.prompt_column in row and row[config.prompt_column] is None and isinstance(chosen, str)
    if not chosen or not rejected or null_prompt:
        return None
    messages, better, worse = split_answers(chosen, rejected, row.get(config.prompt_column), where)
    return None if is_empty(messages) or not better.strip() or not worse.strip() else (messages, [better, worse])


def _ranked(
    row: Row, where: str, config: PreferenceDataConfig, ranking_column: str
) -> tuple[list[Message], list[str]] | None:
    texts = column(row, ranking_column, where, "data.ranking_column")
    prompt = column(row, config.prompt_column, where, "data.prompt_column")
    if prompt is None or not texts:
        return None
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: {ranking_column} must be a list of two or more strings, the best first")
    messages = as_messages(prompt, where)
    return None if is_empty(messages) or not all(text.strip() for text in texts) else (messages, texts)


def _longer_wins(texts: list[str]) -> float:
    wins = [0.5 if len(a) == len(b) else float(len(a) > len(b)) for a, b in combinations(texts, 2)]
    return sum(wins) / len(wins)


def _number(row: Row, name: str | None, where: str, option: str, default: float, bounds: tuple[float, float]) -> float:
    if name is None:
        return default
    value: Any = column(row, name, where, f"data.{option}")
    low, high = bounds
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{where}: {name} must be a number between {low:g} and {high:g}, got {value!r}")
    return float(value)
