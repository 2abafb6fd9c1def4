"""What a row says, in each of the known formats (detect.py tells which one it has).

Whatever the format, a row becomes a `Case`: the conversation up to the answer, and the answers, the best first.
docs/data.md has an example of each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.sections import DataConfig, PreferenceDataConfig, RowPolicy
from rlhf_cli.data.bad_rows import BadRow, Row, column
from rlhf_cli.data.conversation import Message, as_messages, split_answers
from rlhf_cli.data.ratings import SCORES, as_number, number_or_none, score_name

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model"), "assistant"),
    "system": "system",
}
_OWN_COLUMNS = ("prompt", "instruction", "messages", "conversations", "completions")


@dataclass(frozen=True)
class Case:
    """What a row says."""

    messages: list[Message]  # up to the answer
    answers: list[tuple[str, str]]  # (field, text), the best first; none in rows of prompts
    ranks: tuple[int, ...] = ()  # of the answers, 0 the best, equal where tied; (): none is


def is_hh(value: Any) -> bool:
    """Say whether a value is a transcript, `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
    return isinstance(value, str) and value.lstrip("\n").startswith("Human:") and "\n\nAssistant:" in value


def question_columns(config: DataConfig, row_format: Format) -> frozenset[str]:
    """Return the columns that the prompt stands in, which are not among a prompt's other columns."""
    own = {Format.columns: (), Format.rated_rows: ("completions",)}.get(row_format, _OWN_COLUMNS)
    return frozenset((config.prompt_column, *own))


def asked(row: Row, config: DataConfig, row_format: Format) -> list[Message]:
    """Return the conversation of a row up to the answer, which it may hold or not; [] where it is null.

    Raises BadRow for a row of another form.
    """
    readers: dict[Format, Callable[[Row, DataConfig], list[Message]]] = {
        Format.hh: _hh_question,
        Format.messages: _chat_question,
        Format.sharegpt: _sharegpt_question,
        Format.alpaca: _alpaca_question,
        Format.rated: _rated_question,
    }
    read = readers.get(row_format, _column_question)
    return read(row, config)


def compared(row: Row, config: PreferenceDataConfig, row_format: Format) -> Case:
    """Return what a row of preferences says; raise BadRow for a row of another form."""
    readers: dict[Format, Callable[[Row, PreferenceDataConfig], Case]] = {
        Format.hh: _hh_pair,
        Format.messages: _chat_pair,
        Format.sharegpt: _sharegpt_pair,
        Format.alpaca: _alpaca_case,
        Format.rated: _rated,
        Format.rated_rows: _rated,
    }
    read = readers.get(row_format, _column_case)
    return read(row, config)


def _column_question(row: Row, config: DataConfig) -> list[Message]:
    field = config.prompt_column
    value = column(row, field)
    return [] if value is None else _without_answer(as_messages(value, field), field)


def _column_case(row: Row, config: PreferenceDataConfig) -> Case:
    if config.ranking_column is not None:
        return _ranked(row, config, config.ranking_column)
    prompt, better, worse = row.get(config.prompt_column), *_pair(row, config)
    if prompt is None and config.prompt_column in row and isinstance(better, str):
        raise empty(config.prompt_column, config)
    return _case(prompt, better, worse, config)


def _ranked(row: Row, config: PreferenceDataConfig, ranking_column: str) -> Case:
    texts, prompt = column(row, ranking_column), column(row, config.prompt_column)
    for field, value in ((ranking_column, texts), (config.prompt_column, prompt)):
        if value in (None, []):
            raise empty(field, config)
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise BadRow(ranking_column, "wanted a list of two or more strings, the best first")
    return Case(as_messages(prompt, config.prompt_column), [(ranking_column, text) for text in texts])


def _pair(row: Row, config: PreferenceDataConfig) -> tuple[Any, Any]:
    """Return the better and the worse answer of a row as they stand there."""
    names = config.chosen_column, config.rejected_column
    better, worse = (column(row, name) for name in names)
    for name, value in zip(names, (better, worse), strict=True):
        if value in (None, "", []):
            raise empty(name, config)
    return better, worse


def _case(prompt: Any, better: Any, worse: Any, config: PreferenceDataConfig) -> Case:
    fields = config.prompt_column, config.chosen_column, config.rejected_column
    messages, chosen, rejected = split_answers(prompt, better, worse, fields)
    return Case(messages, [(fields[1], chosen), (fields[2], rejected)])


def empty(field: str, config: DataConfig) -> BadRow:
    """Return what is wrong with a row whose field holds no text."""
    return BadRow(field, "empty", config.empty, "data.empty")


def _without_answer(messages: list[Message], field: str) -> list[Message]:
    """Return a conversation up to its last answer, if it ends in one."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    if messages and not end:
        raise BadRow(field, "nobody asks in this conversation: only the assistant speaks")
    return messages[:end]


def _transcript(value: Any, field: str) -> list[Message]:
    """Return the turns of `\\n\\nHuman: ...\\n\\nAssistant: ...`, each without the spaces around it."""
    if not isinstance(value, str):
        raise BadRow(field, f"got {type(value).__name__}, wanted a transcript, '\\n\\nHuman: ...\\n\\nAssistant: ...'")
    before, *turns = _TURN.split(value)
    if before.strip() or not turns:
        raise BadRow(field, "a transcript begins with '\\n\\nHuman:'")
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [{"role": _HH_ROLES[who], "content": text.strip()} for who, text in pairs]


def _hh_question(row: Row, config: DataConfig) -> list[Message]:
    field = config.prompt_column if config.prompt_column in row else "chosen"
    value = column(row, field)
    return [] if value is None else _without_answer(_transcript(value, field), field)


def _hh_pair(row: Row, config: PreferenceDataConfig) -> Case:
    better, worse = _pair(row, config)
    asking = row.get(config.prompt_column)
    prompt = (
        None if asking is None else _without_answer(_transcript(asking, config.prompt_column), config.prompt_column)
    )
    if prompt is not None and isinstance(better, str) and not is_hh(better):
        case = _case(prompt, better, worse, config)
        return Case(case.messages, [(field, text.strip()) for field, text in case.answers])
    left, right = _transcript(better, config.chosen_column), _transcript(worse, config.rejected_column)
    return _case(prompt, left, right, config)


def _chat(value: Any, field: str) -> list[Message]:
    """Return the messages of a list, of one message, or of a text, which is the assistant's."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    several = [value] if isinstance(value, dict) else value
    if not isinstance(several, list):
        raise BadRow(field, f"got {type(value).__name__}, wanted a list of messages")
    return as_messages(several, field)


def _conversation(row: Row, config: DataConfig) -> tuple[str, Any]:
    """Return (field, messages) of the conversation of a row, which may end in the answer; None where there is none."""
    asking = row.get("input")
    if isinstance(asking, dict) and "messages" in asking:  # OpenAI's preference format
        return "input", asking["messages"]
    for field in (config.prompt_column, "messages"):
        if field in row:
            return field, row[field]
    return "messages", None


def _chat_question(row: Row, config: DataConfig) -> list[Message]:
    field, value = _conversation(row, config)
    if value is None and field not in row:
        field, value = "chosen", column(row, "chosen") if "chosen" in row else column(row, "messages")
    if value is None:
        return []
    messages = as_messages(value, field) if isinstance(value, str) else _chat(value, field)
    return _without_answer(messages, field)


def _chat_pair(row: Row, config: PreferenceDataConfig) -> Case:
    names = ("preferred_output", "non_preferred_output") if "preferred_output" in row else None
    better, worse = (column(row, name) for name in names) if names else _pair(row, config)
    fields = names or (config.chosen_column, config.rejected_column)
    left, right = _chat(better, fields[0]), _chat(worse, fields[1])
    field, value = _conversation(row, config)
    prompt: list[Message] | None = None
    if value is not None and (len(left) == 1 or len(right) == 1 or field != "messages"):
        messages = as_messages(value, field) if isinstance(value, str) else _chat(value, field)
        prompt = _without_answer(messages, field)
    messages, chosen, rejected = split_answers(prompt, left, right, (field, *fields))
    return Case(messages, [(fields[0], chosen), (fields[1], rejected)])


def _turns(value: Any, field: str) -> list[Message]:
    """Return the messages of a ShareGPT conversation, of one turn, or of a text, which is the assistant's."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    several = [value] if isinstance(value, dict) else value
    if not isinstance(several, list) or not all(isinstance(turn, dict) for turn in several):
        raise BadRow(field, f"got {type(value).__name__}, wanted a list of turns with `from` and `value`")
    messages = []
    for turn in several:
        who, text = turn.get("from"), turn.get("value")
        if not isinstance(who, str) or not isinstance(text, str):
            raise BadRow(field, f"a turn needs `from` and `value` strings, got {sorted(map(str, turn))}")
        if who not in _SHAREGPT_ROLES:
            raise BadRow(field, f"a turn is from {who!r}, wanted {', '.join(_SHAREGPT_ROLES)}")
        messages.append({"role": _SHAREGPT_ROLES[who], "content": text})
    return messages


def _sharegpt_question(row: Row, config: DataConfig) -> list[Message]:
    field = "conversations" if "conversations" in row or "chosen" not in row else "chosen"
    value = column(row, field)
    if value is None:
        return []
    return _with_system(row, _without_answer(_turns(value, field), field))


def _sharegpt_pair(row: Row, config: PreferenceDataConfig) -> Case:
    better, worse = _pair(row, config)
    left, right = _turns(better, config.chosen_column), _turns(worse, config.rejected_column)
    asking = row.get("conversations")
    prompt = None if asking is None else _without_answer(_turns(asking, "conversations"), "conversations")
    fields = "conversations", config.chosen_column, config.rejected_column
    messages, chosen, rejected = split_answers(prompt, left, right, fields)
    return Case(_with_system(row, messages), [(fields[1], chosen), (fields[2], rejected)])


def _with_system(row: Row, messages: list[Message]) -> list[Message]:
    """Put what stands in the column `system`, if anything, before a conversation that has no such message."""
    system = row.get("system")
    if system is None or not messages or messages[0]["role"] == "system":
        return messages
    if not isinstance(system, str):
        raise BadRow("system", f"got {type(system).__name__}, wanted a string")
    return [{"role": "system", "content": system}, *messages] if system.strip() else messages


def _alpaca_question(row: Row, config: DataConfig) -> list[Message]:
    instruction, more = column(row, "instruction"), row.get("input")
    if instruction is None:
        return []
    if not isinstance(instruction, str) or not isinstance(more, str | None):
        raise BadRow("instruction", "wanted strings in `instruction` and `input`")
    text = f"{instruction}\n{more}" if more else instruction
    return _with_system(row, [*_history(row), {"role": "user", "content": text}])


def _history(row: Row) -> list[Message]:
    messages: list[Message] = []
    for turn in row.get("history") or ():
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise BadRow("history", "wanted a list of [question, answer] pairs")
        messages += as_messages(turn[0], "history")
        messages.append({"role": "assistant", "content": turn[1]})
    return messages


def _alpaca_case(row: Row, config: PreferenceDataConfig) -> Case:
    messages = _alpaca_question(row, config)
    if "output_1" in row:
        return Case(messages, _labelled(row))
    if isinstance(row.get("output"), list):
        texts = row["output"]
        if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
            raise BadRow("output", "wanted a list of two or more strings, the best first")
        return Case(messages, [("output", text) for text in texts])
    better, worse = _pair(row, config)
    fields = (config.chosen_column, config.rejected_column)
    for field, text in zip(fields, (better, worse), strict=True):
        if not isinstance(text, str):
            raise BadRow(field, f"got {type(text).__name__}, wanted a string")
    return Case(messages, [(fields[0], better), (fields[1], worse)])


def _labelled(row: Row) -> list[tuple[str, str]]:
    """Return `output_1` and `output_2` of a row, the one first that `preference`, 1 or 2, says."""
    answers = [(name, column(row, name)) for name in ("output_1", "output_2")]
    for name, text in answers:
        if not isinstance(text, str):
            raise BadRow(name, f"got {type(text).__name__}, wanted a string")
    value = column(row, "preference")
    preference = as_number(value)
    if preference not in (1, 2):
        raise BadRow("preference", f"wanted 1 or 2, the number of the better output, got {value!r}")
    return answers if preference == 1 else answers[::-1]


def _rated_question(row: Row, config: DataConfig) -> list[Message]:
    field = config.prompt_column if config.prompt_column in row else "instruction"
    value = column(row, field)
    if value is None:
        return []
    return as_messages(value, field) if isinstance(value, str) else _chat(value, field)


def _rated(row: Row, config: PreferenceDataConfig) -> Case:
    """Rank the completions of a row by their ratings; one without a rating does not count.

    An answer that is there twice counts once, with the mean of its ratings.
    """
    messages, completions = _rated_question(row, config), column(row, "completions")
    if not isinstance(completions, list) or not all(isinstance(one, dict) for one in completions):
        raise BadRow("completions", "wanted a list of completions, each with a response and a rating")
    ratings: dict[str, list[float]] = {}
    for one in completions:
        if config.response_column not in one:
            raise BadRow(f"completions.{config.response_column}", "missing")
        text, rating = one[config.response_column], _rating(one, config.score_column)
        if not isinstance(text, str | None):
            raise BadRow(f"completions.{config.response_column}", f"got {type(text).__name__}, wanted a string")
        if rating is not None:
            ratings.setdefault(text or "", []).append(rating)
    means = {text: math.fsum(several) / len(several) for text, several in ratings.items()}
    if len(means) < 2:
        raise BadRow("completions", "fewer than two rated answers", RowPolicy.drop)
    levels = sorted(set(means.values()), reverse=True)
    if len(levels) == 1:
        raise BadRow("completions", "equal ratings", config.equal, "data.equal")
    texts = sorted(means, key=lambda text: -means[text])
    ranks = tuple(levels.index(means[text]) for text in texts)
    tied = len(levels) < len(texts)
    return Case(messages, [("completions", text) for text in texts], ranks if tied else ())


def _rating(completion: Row, score_column: str | None) -> float | None:
    """Return the rating of a completion; None where it has none."""
    name = score_name(completion, score_column)
    if name is None:
        if score_column is not None:
            raise BadRow(f"completions.{score_column}", "missing")
        raise BadRow("completions", f"no rating, wanted one of {', '.join(SCORES)}; set data.score_column")
    return number_or_none(completion[name], f"completions.{name}")
