"""Prompt rows to token ids."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rlhf_cli.config.schema import InputError, PromptDataConfig
from rlhf_cli.data.conversation import Renderer, as_messages, is_empty
from rlhf_cli.data.sources import Row, RowCounter, column, split_by_prompt, train_and_eval_rows


@dataclass(frozen=True)
class Prompt:
    text: str  # the last message, for people
    ids: tuple[int, ...]
    key: str  # equal for rows with the same prompt


@dataclass(frozen=True)
class PromptSets:
    train: list[Prompt]
    eval: list[Prompt]
    notes: list[str]  # what was kept and dropped, one line a source


def load_prompts(config: PromptDataConfig, renderer: Renderer, seed: int) -> PromptSets:
    """Load, render, filter and split; raise InputError where no prompt is left to train on."""
    train_rows, eval_rows = train_and_eval_rows(config)
    train, notes = _prompts(train_rows, config, renderer, "data.train", config.train)
    if eval_rows is None:
        kept, held_out = split_by_prompt([prompt.key for prompt in train], config.eval_fraction, seed)
        eval_prompts, train = [train[i] for i in held_out], [train[i] for i in kept]
        notes = [*notes, f"held out: {len(eval_prompts)} prompts ({config.eval_fraction:g} of them)"]
    else:
        assert config.eval is not None
        eval_prompts, more = _prompts(eval_rows, config, renderer, "data.eval", config.eval)
        notes = [*notes, *more]
    if not train:
        limit = config.max_prompt_tokens
        raise InputError(f"no prompts are left to train on; {'; '.join(notes)}; data.max_prompt_tokens is {limit}")
    return PromptSets(train, eval_prompts, notes)


def _prompts(
    rows: list[Row], config: PromptDataConfig, renderer: Renderer, key: str, source: str
) -> tuple[list[Prompt], list[str]]:
    counter = RowCounter(source)
    prompts = []
    for index, row in enumerate(rows):
        where = f"{key}={source}: row {index}"
        value = column(row, config.prompt_column, where, "data.prompt_column")
        messages = [] if value is None else as_messages(value, where)
        if is_empty(messages):
            counter.reject(index, "empty", config.empty, "data.empty")
            continue
        ids = renderer.prompt_ids(messages)
        if len(ids) > config.max_prompt_tokens:
            counter.reject(index, "too long", config.too_long, "data.too_long")
            continue
        prompts.append(Prompt(messages[-1]["content"], ids, json.dumps(messages)))
    return prompts, [counter.summary(len(prompts))]
