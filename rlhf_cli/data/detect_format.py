"""Which of the known formats rows have, and which columns are then read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DataConfig, PreferenceDataConfig
from rlhf_cli.data.bad_rows import Row
from rlhf_cli.data.ratings import SCORES, score_name
from rlhf_cli.data.row_formats import is_hh

NUM_DETECTED = 20  # rows from which the format is detected


def detect(rows: Iterable[Row], config: DataConfig) -> Format:
    """Return the format of some rows; `columns` where none is recognised.

    Raises InputError for rows of several formats.
    """
    find = _preference_format if isinstance(config, PreferenceDataConfig) else _prompt_format
    found = dict.fromkeys(one for row in rows if (one := find(row, config)) is not None)
    if len(found) > 1:
        raise InputError(f"rows of several formats, {' and '.join(one.name for one in found)}; set data.format")
    return next(iter(found), Format.columns)


def _preference_format(row: Row, config: Any) -> Format | None:
    if config.ranking_column is not None:
        return Format.columns
    if _is_rated(row):
        return Format.rated
    chosen, prompt = row.get(config.chosen_column), row.get(config.prompt_column)
    if chosen is None or config.rejected_column not in row:
        return _unpaired_format(row, config)
    if (is_hh(chosen) and prompt is None) or (is_hh(prompt) and isinstance(chosen, str)):
        return Format.hh
    if _is_sharegpt(chosen) or "conversations" in row:
        return Format.sharegpt
    if config.prompt_column in row and not isinstance(chosen, dict):
        return Format.columns
    return Format.messages if isinstance(chosen, list | dict) else _format_of_prompt_column(row)


def _unpaired_format(row: Row, config: PreferenceDataConfig) -> Format | None:
    if config.response_column in row and score_name(row, config.score_column) is not None:
        return Format.rated_rows
    if "preferred_output" in row:
        return Format.messages
    return Format.alpaca if "output_1" in row or isinstance(row.get("output"), list) else None


def _prompt_format(row: Row, config: DataConfig) -> Format | None:
    prompt, chosen = row.get(config.prompt_column), row.get("chosen")
    if config.prompt_column in row:
        if is_hh(prompt):
            return Format.hh
        is_scored = "chosen" not in row and "response" in row and score_name(row, None) is not None
        return Format.rated_rows if is_scored else Format.columns
    if is_hh(chosen):
        return Format.hh
    found = _format_of_prompt_column(row)
    if found is None and isinstance(chosen, list | dict):
        return Format.sharegpt if _is_sharegpt(chosen) else Format.messages
    return found


def _format_of_prompt_column(row: Row) -> Format | None:
    if "conversations" in row:
        return Format.sharegpt
    if isinstance(row.get("messages"), list) or "preferred_output" in row:
        return Format.messages
    if _is_rated(row):
        return Format.rated
    return Format.alpaca if "instruction" in row else None


def _is_sharegpt(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and "from" in first


def _is_rated(row: Row) -> bool:
    completions = row.get("completions")
    return isinstance(completions, list) and bool(completions) and isinstance(completions[0], dict)


def describe_columns(config: DataConfig, row_format: Format) -> str:
    """Describe in one line which columns of a row are read, and as what."""
    prompt, better, pair, ranking = config.prompt_column, "chosen", "", ""
    if isinstance(config, PreferenceDataConfig):
        if config.ranking_column is not None:
            return f"prompt from {prompt}, answers from {config.ranking_column}, the best first"
        better = config.chosen_column
        pair = f", answers from {better} over {config.rejected_column}"
        ranking = f"{config.response_column}, ranked by {config.score_column or ' or '.join(SCORES)}"
    alpaca = f"{pair}, or output, or output_1 and output_2" if pair else ""
    return {
        Format.hh: f"transcripts, the prompt from {prompt} or the first turns of {better}{pair}",
        Format.messages: f"the prompt from messages, {prompt} or input, or the shared start of the answers{pair}",
        Format.sharegpt: f"the prompt from conversations, or the shared start of the answers{pair}",
        Format.alpaca: f"prompt from system, history, instruction and input{alpaca}",
        Format.rated: f"prompt from {prompt} or instruction{ranking and f', answers from completions: {ranking}'}",
        Format.rated_rows: f"prompt from {prompt}, which groups rows{ranking and f', answers from {ranking}'}",
    }.get(row_format, f"prompt from {prompt}{pair}")
