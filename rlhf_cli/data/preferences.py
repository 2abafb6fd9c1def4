"""Preference rows to token pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rlhf_cli.config.schema import InputError, PreferenceDataConfig
from rlhf_cli.data.conversation import Renderer, is_empty, split_answers
from rlhf_cli.data.sources import Row, RowCounter, column, split_by_prompt, train_and_eval_rows
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


@dataclass(frozen=True)
class PreferenceSets:
    train: list[PreferencePair]
    eval: list[PreferencePair]
    notes: list[str]  # what was kept and dropped, one line a source


def load_preferences(config: PreferenceDataConfig, renderer: Renderer, seed: int) -> PreferenceSets:
    """Load, render, filter and split; raise InputError where no row is left on the training side."""
    train_rows, eval_rows = train_and_eval_rows(config)
    train, notes = _pairs(train_rows, config, renderer, "data.train", config.train)
    if eval_rows is None:
        kept, held_out = split_by_prompt([pair.prompt_key for pair in train], config.eval_fraction, seed)
        eval_pairs, train = [train[i] for i in held_out], [train[i] for i in kept]
        notes = [*notes, f"held out: {len(eval_pairs)} pairs ({config.eval_fraction:g} of the prompts)"]
    else:
        assert config.eval is not None
        eval_pairs, more = _pairs(eval_rows, config, renderer, "data.eval", config.eval)
        notes = [*notes, *more]
    if not train:
        raise InputError(f"no training pairs are left; {'; '.join(notes)}; data.max_tokens is {config.max_tokens}")
    return PreferenceSets(train, eval_pairs, notes)


def _pairs(
    rows: list[Row], config: PreferenceDataConfig, renderer: Renderer, key: str, source: str
) -> tuple[list[PreferencePair], list[str]]:
    counter = RowCounter(source)
    pairs = [
        pair
        for index, row in enumerate(rows)
        if (pair := _pair(row, f"{key}={source}: row {index}", index, config, renderer, counter))
    ]
    return pairs, [counter.summary(len(pairs))]


def _pair(
    row: Row, where: str, index: int, config: PreferenceDataConfig, renderer: Renderer, counter: RowCounter
) -> PreferencePair | None:
    chosen = column(row, config.chosen_column, where, "data.chosen_column")
    rejected = column(row, config.rejected_column, where, "data.rejected_column")
    null_prompt = config.prompt_column in row and row[config.prompt_column] is None and isinstance(chosen, str)
    if not chosen or not rejected or null_prompt:
        counter.reject(index, "empty", config.empty, "data.empty")
        return None
    messages, better, worse = split_answers(chosen, rejected, row.get(config.prompt_column), where)
    if is_empty(messages) or not better.strip() or not worse.strip():
        counter.reject(index, "empty", config.empty, "data.empty")
        return None
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
