"""Prompt rows to token ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.sections import PromptDataConfig
from rlhf_cli.data.bad_rows import BadRow, Row, json_value
from rlhf_cli.data.conversation import Message, Renderer, is_empty
from rlhf_cli.data.row_formats import asked, empty, question_columns
from rlhf_cli.data.row_pipeline import Prepare
from rlhf_cli.data.row_store import Ids
from rlhf_cli.data.splits import Splits, load_splits
from rlhf_cli.data.token_cache import RowCache


@dataclass(frozen=True)
class Prompt:
    text: str  # the last message, for people
    ids: tuple[int, ...]
    prompt_key: str  # equal for rows with the same prompt
    messages: tuple[Message, ...] = field(default=(), hash=False)  # up to the answer, as the row gave them
    columns: dict[str, Any] = field(default_factory=dict, hash=False)  # the row's others: name -> JSON value

    def to_record(self) -> tuple[list[Ids], list[Any]]:
        """Return its ids, and the other fields."""
        return [self.ids], [self.text, self.prompt_key, self.messages, self.columns]

    @classmethod
    def from_record(cls, ids: list[Ids], fields: list[Any]) -> Self:
        """Return the prompt that has these parts."""
        text, prompt_key, messages, columns = fields
        return cls(text, ids[0], prompt_key, tuple(messages), columns)


def load_prompts(config: PromptDataConfig, renderer: Renderer, seed: int) -> Splits[Prompt]:
    """Load, render, filter and split; raise InputError where no prompt is left to train on."""
    return load_splits(config, seed, preparing(renderer), RowCache(config, renderer, Prompt))


def preparing(renderer: Renderer) -> Prepare[Prompt]:
    """Return what makes the converter of a source's rows."""

    def prepare(config: PromptDataConfig, row_format: Format) -> tuple[dict[str, str], Callable[[Row], Prompt]]:
        is_named = row_format in (Format.columns, Format.rated_rows)
        wanted = {config.prompt_column: "data.prompt_column"} if is_named else {}
        questions = question_columns(config, row_format)

        def convert(row: Row) -> Prompt:
            messages = asked(row, config, row_format)
            if is_empty(messages):
                raise empty(config.prompt_column, config)
            ids = renderer.prompt_ids(messages)
            if len(ids) > config.max_prompt_tokens:
                raise BadRow(config.prompt_column, "too long", config.too_long, "data.too_long")
            others = {name: json_value(content) for name, content in row.items() if name not in questions}
            return Prompt(messages[-1]["content"], ids, json.dumps(messages), tuple(messages), others)

        return wanted, convert

    return prepare
