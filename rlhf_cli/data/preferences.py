"""Preference rows to token pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rlhf_cli.config.sections import PreferenceDataConfig
from rlhf_cli.data.conversation import Message, Renderer, is_empty, split_answers
from rlhf_cli.data.sources import Row, RowCounter, Sides, column, load_sides
from rlhf_cli.data.tokens import Sequence


@dataclass(frozen=True)
class PreferencePair:
    """One prompt with the better and the worse answer."""

    chosen: Sequence
    rejected: Sequence
    longer_wins: float  # 1 where the chosen text is longer, 0 where shorter, a half at equal length
    prompt_key: str  # equal for rows with the same prompt

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt with the longer answer."""
        return len(self.chosen.prompt_ids) + max(len(self.chosen.response_ids), len(self.rejected.response_ids))


def load_preferences(config: PreferenceDataConfig, renderer: Renderer, seed: int) -> Sides[PreferencePair]:
    """Load, render, filter and split; raise InputError where no pair is left to train on."""

    def convert(row: Row, where: str, index: int, counter: RowCounter) -> PreferencePair | None:
        answers = _answers(row, where, config)
        if answers is None:
            counter.reject(index, "empty", config.empty, "data.empty")
            return None
        messages, better, worse = answers
        if better == worse:
            counter.reject(index, "chosen == rejected", config.equal, "data.equal")
            return None
        prompt_ids = renderer.prompt_ids(messages)
        pair = PreferencePair(
            chosen=Sequence(prompt_ids, renderer.response_ids(better)),
            rejected=Sequence(prompt_ids, renderer.response_ids(worse)),
            longer_wins=0.5 if len(better) == len(worse) else float(len(better) > len(worse)),
            prompt_key=json.dumps(messages),
        )
        if pair.num_tokens > config.max_tokens:
            counter.reject(index, "too long", config.too_long, "data.too_long")
            return None
        return pair

    return load_sides(config, seed, convert)


def _answers(row: Row, where: str, config: PreferenceDataConfig) -> tuple[list[Message], str, str] | None:
    """Return prompt messages, chosen and rejected text; None where one of them is empty."""
    chosen = column(row, config.chosen_column, where, "data.chosen_column")
    rejected = column(row, config.rejected_column, where, "data.rejected_column")
    null_prompt = config.prompt_column in row and row[config.prompt_column] is None and isinstance(chosen, str)
    if not chosen or not rejected or null_prompt:
        return None
    messages, better, worse = split_answers(chosen, rejected, row.get(config.prompt_column), where)
    if is_empty(messages) or not better.strip() or not worse.strip():
        return None
    return messages, better, worse
