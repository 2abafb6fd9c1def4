"""Which of the known formats rows have, and which of their columns are then read as what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DataConfig, PreferenceDataConfig
from rlhf_cli.data.bad_rows import Row
from rlhf_cli.data.ratings import SCORES, score_name
from rlhf_cli.data.row_formats import is_hh

NUM_DETECTED = 20  # rows that a format is told from


def detect(rows: Iterable[Row], config: DataConfig) -> Format:
    """Return the format of the first rows; `columns`, whose errors say what is missing, where none is recognised.

    Raises InputError where they have several.
    """
    found = dict.fromkeys(one for one in (_format_of(row, config) for row in rows) if one is not None)
    if len(found) > 1:
        raise InputError(f"rows of several formats, {' and '.join(one.name for one in found)}; set data.format")
    return next(iter(found), Format.columns)


def _format_of(row: Row, config: DataConfig) -> Format | None:
    if isinstance(config, PreferenceDataConfig):
        return _of_preference(row, config)
    return _of_prompt(row, config.prompt_column)


def _of_preference(row: Row, config: PreferenceDataConfig) -> Format | None:
    if config.ranking_column is not None:
        return Format.columns
    if _is_rated(row):
        return Format.rated
    chosen, prompt = row.get(config.chosen_column), row.get(config.prompt_column)
    if chosen is None or config.rejected_column not in row:
        return _without_pair(row, config)
    if (is_hh(chosen) and prompt is None) or (is_hh(prompt) and isinstance(chosen, str)):
        return Format.hh
    if _is_sharegpt(chosen) or "conversations" in row:
        return Format.sharegpt
    if config.prompt_column in row and not isinstance(chosen, dict):
        return Format.columns
    if isinstance(chosen, list | dict):
        return Format.messages
    return _of_question(row)


def _without_pair(row: Row, config: PreferenceDataConfig) -> Format | None:
    """Tell the format of a row that has no chosen and rejected answer of its own."""
    if config.response_column in row and score_name(row, config.score_column) is not None:
        return Format.rated_rows
    if "preferred_output" in row:
        return Format.messages
    if "output_1" in row or isinstance(row.get("output"), list):
        return Format.alpaca
    return None


def _of_prompt(row: Row, prompt_column: str) -> Format | None:
    if prompt_column in row:
        if is_hh(row[prompt_column]):
            return Format.hh
        is_scored = "chosen" not in row and "response" in row and score_name(row, None) is not None
        return Format.rated_rows if is_scored else Format.columns
    if "chosen" in row and is_hh(row["chosen"]):
        return Format.hh
    found = _of_question(row)
    if found is None and isinstance(row.get("chosen"), list | dict):
        return Format.sharegpt if _is_sharegpt(row["chosen"]) else Format.messages
    return found


def _of_question(row: Row) -> Format | None:
    """Tell the format of a row by the column with the question."""
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


def mapping(config: DataConfig, row_format: Format) -> str:
    """Say which columns of a row are read as what."""
    better = worse = ""
    if isinstance(config, PreferenceDataConfig):
        better, worse = config.chosen_column, config.rejected_column
        if config.ranking_column is not None:
            return f"prompt from {config.prompt_column}, answers from {config.ranking_column}, the best first"
    pair = f", answers from {better} over {worse}" if better else ""
    prompt, scores = config.prompt_column, " or ".join(SCORES)
    response = "response"
    if isinstance(config, PreferenceDataConfig):
        response, scores = config.response_column, config.score_column or scores
    return {
        Format.hh: f"transcripts, the prompt from {prompt} or the turns that {better or 'chosen'} begins with{pair}",
        Format.messages: f"the prompt from messages, {prompt} or input, or what the answers begin with alike{pair}",
        Format.sharegpt: f"the prompt from conversations, or what the answers begin with alike{pair}",
        Format.alpaca: "prompt from system, history, instruction and input"
        + (f"{pair}, or output, or output_1 and output_2" if pair else ""),
        Format.rated: f"prompt from {prompt} or instruction"
        + (f", answers from completions: {response}, ranked by {scores}" if pair else ""),
        Format.rated_rows: f"prompt from {prompt}, rows with the same one together"
        + (f", answers from {response}, ranked by {scores}" if pair else ""),
    }.get(row_format, f"prompt from {prompt}{pair}")
