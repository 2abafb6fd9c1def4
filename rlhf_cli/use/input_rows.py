"""Rows of files as texts, whichever tokenizer will read them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_pattern
from rlhf_cli.config.sections import PreferenceDataConfig, PromptDataConfig, RowPolicy
from rlhf_cli.data import preferences
from rlhf_cli.data import prompts as asked_for
from rlhf_cli.data.bad_rows import BadRow, Row, json_value
from rlhf_cli.data.chat_template import Message
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import Ranking
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.read_rows import load_rows
from rlhf_cli.data.row_formats import prompt_columns
from rlhf_cli.data.row_pipeline import Made, Prepare
from rlhf_cli.data.row_store import Ids
from rlhf_cli.data.splits import load_splits
from rlhf_cli.data.token_cache import RowCache
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.use.cli_options import Rows

RESPONSE = "response"  # the usual column of an answer
_NO_LIMIT = 2**31 - 1  # tokens
_OPTION = re.compile(r"\bdata\.(\w+)")


@dataclass(frozen=True)
class Ranked:
    """One prompt with its answers, the best first."""

    messages: list[Message]
    answers: list[str]
    pairs: list[tuple[int, int]]  # places (better, worse)
    category: str | None
    columns: dict[str, Any]  # the row's others: name -> JSON value


@dataclass(frozen=True)
class _Whole:
    """A ranking with the other columns of its row, which training has no use for."""

    ranking: Ranking
    columns: dict[str, Any]

    @property
    def prompt_key(self) -> str:
        """Equal for rows with the same prompt."""
        return self.ranking.prompt_key

    def to_record(self) -> tuple[list[Ids], list[Any]]:
        """Return the ids of the ranking, and its other fields with the columns."""
        ids, fields = self.ranking.to_record()
        return ids, [*fields, self.columns]

    @classmethod
    def from_record(cls, ids: list[Ids], fields: list[Any]) -> Self:
        """Return what has these parts."""
        return cls(Ranking.from_record(ids, fields[:-1]), fields[-1])


def prompts(rows: Rows, option: str) -> list[Prompt]:
    """Return the prompts of a file, with their conversations and columns; raise InputError where a row has none.

    option: the one that names the file, for messages.
    """
    config = PromptDataConfig(
        train=rows.path,
        train_split=rows.split,
        eval_fraction=0.0,
        format=rows.format,
        prompt_column=rows.prompt_column,
        max_prompt_tokens=_NO_LIMIT,
        too_long=RowPolicy.error,
        empty=RowPolicy.error,
        cache=False,
    )
    with _as_options(option):
        renderer = _renderer()
        prepare = _limited(partial(asked_for.prepare, renderer), rows.limit)
        return list(load_splits(config, 0, prepare, RowCache(config, renderer, Prompt)).train)[: rows.limit]


def singles(rows: Rows, column: str | None, option: str) -> list[Prompt] | None:
    """Return rows of one answer each, with the column that holds it; None where rows rank answers.

    column: what holds the answer; None: rows have one if the first has a column `response` and none named `chosen`,
    and no layout was asked for.
    Raises InputError for a row without an answer.
    """
    if column is None:
        if rows.format is not Format.auto:
            return None
        path = resolve_pattern(rows.path, option)[0]
        with _as_options(option):
            _, first = next(load_rows(path, rows.split, "data.train"))
        if isinstance(first, BadRow) or RESPONSE not in first or "chosen" in first:
            return None  # who reads ranked rows says what is wrong
    name = column or RESPONSE
    found = prompts(rows, option)
    for number, row in enumerate(found, 1):
        if not isinstance(row.columns.get(name), str):
            got = type(row.columns[name]).__name__ if name in row.columns else "no such column"
            raise InputError(f"{option}={rows.path}: row {number}: {name}: wanted a string, got {got}")
    return found


def rankings(rows: Rows, columns: dict[str, Any], option: str) -> tuple[list[Ranked], list[str]]:
    """Return the ranked answers of a file, and notes on what was left out; raise InputError where a row is not sound.

    columns: options of PreferenceDataConfig, such as chosen_column.
    """
    config = PreferenceDataConfig(
        train=rows.path,
        train_split=rows.split,
        eval_fraction=0.0,
        format=rows.format,
        prompt_column=rows.prompt_column,
        max_tokens=_NO_LIMIT,
        too_long=RowPolicy.error,
        cache=False,
        **columns,
    )
    renderer = _renderer()
    with _as_options(option):
        sides = load_splits(config, 0, _limited(_preparing(renderer), rows.limit), RowCache(config, renderer, _Whole))
    return [_ranked(row, renderer) for row in list(sides.train)[: rows.limit]], sides.notes[:1]


def _preparing(renderer: Renderer) -> Prepare[_Whole]:
    def prepare(config: PreferenceDataConfig, row_format: Format) -> tuple[dict[str, str], Callable[[Row], _Whole]]:
        wanted, convert = preferences.prepare(renderer, config, row_format)
        answers = {config.ranking_column} if config.ranking_column else {config.chosen_column, config.rejected_column}
        own = prompt_columns(config, row_format) | answers
        is_shared = row_format is not Format.rated_rows  # whose columns are those of one answer

        def whole(row: Row) -> _Whole:
            others = {name: json_value(content) for name, content in row.items() if is_shared and name not in own}
            return _Whole(convert(row), others)

        return wanted, whole

    return prepare


def _limited(prepare: Prepare[Made], limit: int | None) -> Prepare[Made]:
    """Return what makes the converter of a source's first rows, and drops those behind them unseen."""

    def first(config: Any, row_format: Format) -> tuple[dict[str, str], Callable[[Row], Made]]:
        wanted, convert = prepare(config, row_format)
        num_made = 0

        def convert_first(row: Row) -> Made:
            nonlocal num_made
            if limit is not None and num_made >= limit:
                raise BadRow("", "beyond --limit", RowPolicy.drop)
            made = convert(row)
            num_made += 1
            return made

        return wanted, convert_first

    return first


def _ranked(row: _Whole, renderer: Renderer) -> Ranked:
    ranking = row.ranking
    answers = [renderer.response_text(answer.response_ids) for answer in ranking.answers]
    return Ranked(json.loads(ranking.prompt_key), answers, ranking.pairs, ranking.category, row.columns)


def _renderer() -> Renderer:
    """Text to bytes and back, nothing lost: who reads the texts has a tokenizer of its own."""
    return Renderer(byte_tokenizer(), PromptDataConfig())


@contextmanager
def _as_options(option: str) -> Iterator[None]:
    """Name options in messages as the command line spells them."""
    try:
        yield
    except InputError as error:
        text = str(error).replace("data.train", option)
        raise InputError(_OPTION.sub(lambda found: f"--{found[1].replace('_', '-')}", text)) from error
