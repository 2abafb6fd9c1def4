"""Prompt rows to token ids."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rlhf_cli.config.sections import PromptDataConfig
from rlhf_cli.data.conversation import Renderer, as_messages, is_empty
from rlhf_cli.data.sources import Row, RowCounter, Sides, column, load_sides


@dataclass(frozen=True)
class Prompt:
    text: str  # the last message, for people
    ids: tuple[int, ...]
    prompt_key: str  # equal for rows with the same prompt


def load_prompts(config: PromptDataConfig, renderer: Renderer, seed: int) -> Sides[Prompt]:
    """Load, render, filter and split; raise InputError where no prompt is left to train on."""

    def convert(row: Row, where: str, index: int, counter: RowCounter) -> Prompt | None:
        value = column(row, config.prompt_column, where, "data.prompt_column")
        messages = [] if value is None else as_messages(value, where)
        if is_empty(messages):
            counter.reject(index, "empty", config.empty, "data.empty")
            return None
        ids = renderer.prompt_ids(messages)
        if len(ids) > config.max_prompt_tokens:
            counter.reject(index, "too long", config.too_long, "data.too_long")
            return None
        return Prompt(messages[-1]["content"], ids, json.dumps(messages))

    return load_sides(config, seed, convert)
