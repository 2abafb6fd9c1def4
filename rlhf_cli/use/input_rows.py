"""Reads the rows of a command as texts, whatever tokenizers its models have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_pattern
from rlhf_cli.config.sections import DataConfig, PreferenceDataConfig, PromptDataConfig, RowPolicy
from rlhf_cli.data import preferences
from rlhf_cli.data import prompts as prompt_rows
from rlhf_cli.data.bad_rows import BadRow, Row, json_value
from rlhf_cli.data.chat_template import Message
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.read_rows import load_rows
from rlhf_cli.data.row_formats import prompt_columns
from rlhf_cli.data.row_pipeline import Prepare
from rlhf_cli.data.row_store import Ids
from rlhf_cli.data.splits import HasPrompt, load_splits
from rlhf_cli.data.token_cache import RowCache
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.use.cli_options import InputRows

RESPONSE = "response"  # the default column of a single response
_NO_LIMIT = 2**31 - 1  # tokens
_OPTION = re.compile(r"\bdata\.(\w+)")
Example = TypeVar("Example", bound=HasPrompt)
Prepared = tuple[dict[str, str], Callable[[Row], Example]]  # wanted columns, and what converts a row


@dataclass(frozen=True)
class RankedRow:
    """One prompt with several responses, the best first."""

    messages: list[Message]
    responses: list[str]
    pairs: list[tuple[int, int]]  # indices (better, worse)
    category: str | None
    columns: dict[str, Any]  # the row's others: name -> JSON value

    @property
    def prompt_key(self) -> str:
        """Equal for rows with the same prompt."""
        return json.dumps(self.messages)

    def to_record(self) -> tuple[list[Ids], list[Any]]:
        """Return the fields as JSON values."""
        return [], [self.messages, self.responses, self.pairs, self.category, self.columns]

    @classmethod
    def from_record(cls, _ids: list[Ids], fields: list[Any]) -> Self:
        """Return the row of a record."""
        return cls(*fields)


def read_prompts(rows: InputRows) -> list[Prompt]:
    """Return the prompts with their columns; raise InputError for a row without a prompt."""
    config = PromptDataConfig(**_data_options(rows), max_prompt_tokens=_NO_LIMIT, empty=RowPolicy.error)
    return _load(config, Prompt, prompt_rows.prepare, rows)[0]


def read_single_responses(rows: InputRows, column: str | None) -> list[Prompt] | None:
    """Return rows with one response each; None if rows rank responses.

    column: holds the response. Without it, rows have one response if no format is given and the
    first row has a column `response` but none named `chosen`. Raises InputError for a row without a
    response.
    """
    if column is None and not _has_single_response(rows):
        return None
    name = column or RESPONSE
    prompts = read_prompts(rows)
    for number, row in enumerate(prompts, 1):
        if not isinstance(row.columns.get(name), str):
            got = type(row.columns[name]).__name__ if name in row.columns else "no such column"
            raise InputError(f"{rows.option}={rows.path}: row {number}: {name}: wanted a string, got {got}")
    return prompts


def _has_single_response(rows: InputRows) -> bool:
    if rows.format is not Format.auto:
        return False
    path = resolve_pattern(rows.path, rows.option)[0]
    try:
        _, first = next(load_rows(path, rows.split, "data.train"))
    except InputError as error:
        raise _with_cli_options(error, rows) from error
    return not isinstance(first, BadRow) and RESPONSE in first and "chosen" not in first


def read_rankings(rows: InputRows, columns: dict[str, str]) -> tuple[list[RankedRow], list[str]]:
    """Return the ranked responses and a note on dropped rows; raise InputError for a bad row.

    columns: options of PreferenceDataConfig, such as chosen_column.
    """
    config = PreferenceDataConfig(**_data_options(rows), **dict[str, Any](columns), max_tokens=_NO_LIMIT)
    return _load(config, RankedRow, _prepare_rankings, rows)


def _data_options(rows: InputRows) -> dict[str, Any]:
    return {
        "train": rows.path,
        "train_split": rows.split,
        "eval_fraction": 0.0,
        "format": rows.format,
        "prompt_column": rows.prompt_column,
        "too_long": RowPolicy.error,
        "cache": False,
    }


def _load(
    config: DataConfig,
    kind: type[Example],
    prepare: Callable[[Renderer, Any, Format], Prepared[Example]],
    rows: InputRows,
) -> tuple[list[Example], list[str]]:
    renderer = Renderer(byte_tokenizer(), PromptDataConfig())  # turns text into bytes and back without loss
    limited = _limited(partial(prepare, renderer), rows.limit)
    try:
        splits = load_splits(config, 0, limited, RowCache(config, renderer, kind))
    except InputError as error:
        raise _with_cli_options(error, rows) from error
    return list(splits.train), splits.notes[:1]


def _prepare_rankings(renderer: Renderer, config: PreferenceDataConfig, row_format: Format) -> Prepared[RankedRow]:
    wanted, to_ranking = preferences.prepare(renderer, config, row_format)
    answers = {config.ranking_column} if config.ranking_column else {config.chosen_column, config.rejected_column}
    used = prompt_columns(config, row_format) | answers
    has_columns = row_format is not Format.rated_rows  # whose columns belong to one response

    def convert(row: Row) -> RankedRow:
        ranking = to_ranking(row)
        others = {name: json_value(value) for name, value in row.items() if has_columns and name not in used}
        responses = [renderer.response_text(answer.response_ids) for answer in ranking.answers]
        return RankedRow(json.loads(ranking.prompt_key), responses, ranking.pairs, ranking.category, others)

    return wanted, convert


def _limited(prepare: Prepare[Example], limit: int | None) -> Prepare[Example]:
    """Convert the first `limit` rows, and drop later ones without checking them."""

    def prepare_limited(config: Any, row_format: Format) -> Prepared[Example]:
        wanted, convert = prepare(config, row_format)
        num_converted = 0

        def convert_first(row: Row) -> Example:
            nonlocal num_converted
            if limit is not None and num_converted >= limit:
                raise BadRow("", "beyond --limit", RowPolicy.drop)
            converted = convert(row)
            num_converted += 1
            return converted

        return wanted, convert_first

    return prepare_limited


def _with_cli_options(error: InputError, rows: InputRows) -> InputError:
    """Return an error that names options as the command line spells them."""
    text = str(error).replace("data.train", rows.option)
    return InputError(_OPTION.sub(lambda found: f"--{found[1].replace('_', '-')}", text))
