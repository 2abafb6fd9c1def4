"""Rows of prompts to token ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.sections import PromptDataConfig
from rlhf_cli.data.bad_rows import BadRow, Row, json_value
from rlhf_cli.data.chat_template import Message
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.row_formats import prompt_columns, read_prompt, required_prompt_columns
from rlhf_cli.data.row_store import Ids
from rlhf_cli.data.splits import Splits, load_splits
from rlhf_cli.data.token_cache import RowCache


@dataclass(frozen=True)
class Prompt:
    text: str  # the last message, for people
    ids: tuple[int, ...]
    prompt_key: str  # equal for rows with the same prompt
    messages: tuple[Message, ...] = field(default=(), hash=False)  # up to the response
    columns: dict[str, Any] = field(default_factory=dict, hash=False)  # the row's others

    def to_record(self) -> tuple[list[Ids], list[Any]]:
        """Return the ids, and the other fields."""
        return [self.ids], [self.text, self.prompt_key, self.messages, self.columns]

    @classmethod
    def from_record(cls, ids: list[Ids], fields: list[Any]) -> Self:
        """Return the prompt of a record."""
        text, prompt_key, messages, columns = fields
        return cls(text, ids[0], prompt_key, tuple(messages), columns)


def load_prompts(config: PromptDataConfig, renderer: Renderer, seed: int) -> Splits[Prompt]:
    """Load, render, filter and split prompts; raise InputError where none is left to train on."""
    return load_splits(config, seed, partial(prepare, renderer), RowCache(config, renderer, Prompt))


def prepare(
    renderer: Renderer, config: PromptDataConfig, row_format: Format
) -> tuple[dict[str, str], Callable[[Row], Prompt]]:
    """Return the required columns of a source, and the function that makes prompts of its rows."""

    def convert(row: Row) -> Prompt:
        messages = read_prompt(row, config, row_format)
        ids = renderer.prompt_ids(messages)
        if len(ids) > config.max_prompt_tokens:
            raise BadRow(config.prompt_column, "too long", config.too_long, "data.too_long")
        used = prompt_columns(config, row_format)
        columns = {name: json_value(value) for name, value in row.items() if name not in used}
        return Prompt(messages[-1]["content"], ids, json.dumps(messages), tuple(messages), columns)

    return required_prompt_columns(config, row_format), convert
