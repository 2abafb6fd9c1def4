"""Prompt rows to token ids."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Self

from rlhf_cli.config.sections import PromptDataConfig
from rlhf_cli.data.cache import Ids, RowCache
from rlhf_cli.data.conversation import Message, Renderer, as_messages, is_empty
from rlhf_cli.data.rows import BadRow, Row, column, json_value
from rlhf_cli.data.sources import Sides, load_sides


@dataclass(frozen=True)
class Prompt:
    text: str  # the last message, for people
    ids: tuple[int, ...]
    prompt_key: str  # equal for rows with the same prompt
    messages: tuple[Message, ...] = field(default=(), hash=False)  # up to the answer, as the row gave them
    columns: dict[str, Any] = field(default_factory=dict, hash=False)  # the row's others: name -> JSON value

    def parts(self) -> tuple[list[Ids], list[Any]]:
        """Return its ids, and the other fields."""
        return [self.ids], [self.text, self.prompt_key, self.messages, self.columns]

    @classmethod
    def of_parts(cls, ids: list[Ids], rest: list[Any]) -> Self:
        """Return the prompt that has these parts."""
        text, prompt_key, messages, columns = rest
        return cls(text, ids[0], prompt_key, tuple(messages), columns)


def load_prompts(config: PromptDataConfig, renderer: Renderer, seed: int) -> Sides[Prompt]:
    """Load, render, filter and split; raise InputError where no prompt is left to train on."""

    def convert(row: Row) -> Prompt:
        value = column(row, config.prompt_column)
        messages = [] if value is None else as_messages(value, config.prompt_column)
        if is_empty(messages):
            raise BadRow(config.prompt_column, "empty", config.empty, "data.empty")
        ids = renderer.prompt_ids(messages)
        if len(ids) > config.max_prompt_tokens:
            raise BadRow(config.prompt_column, "too long", config.too_long, "data.too_long")
        others = {name: json_value(content) for name, content in row.items() if name != config.prompt_column}
        return Prompt(messages[-1]["content"], ids, json.dumps(messages), tuple(messages), others)

    wanted = {config.prompt_column: "data.prompt_column"}
    return load_sides(config, seed, wanted, convert, RowCache(config, renderer, Prompt))
