"""What a row contains, in each of the known formats (detect_format.py finds out which one it has).

docs/data.md has an example of each format.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.sections import DataConfig, PreferenceDataConfig, RowPolicy
from rlhf_cli.data.bad_rows import BadRow, Row, column
from rlhf_cli.data.chat_template import Message
from rlhf_cli.data.ratings import SCORES, as_number, number_or_none, score_name

_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model"), "assistant"),
    "system": "system",
}
_PROMPT_COLUMNS = ("prompt", "instruction", "messages", "conversations", "completions")
_CONVERSATIONS = (Format.hh, Format.messages, Format.sharegpt)  # may end in a response


@dataclass(frozen=True)
class Comparison:
    """A prompt and the answers to it."""

    messages: list[Message]  # the conversation up to the answer
    answers: list[tuple[str, str]]  # (field, text), the best first
    ranks: tuple[int, ...] = ()  # of the answers: 0 is the best; () where nothing is tied


def is_hh(value: Any) -> bool:
    """Whether a value is a transcript, `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
    return isinstance(value, str) and value.lstrip("\n").startswith("Human:") and "\n\nAssistant:" in value


def is_empty(messages: list[Message]) -> bool:
    """Whether a prompt has no text at all."""
    return not any(message["content"].strip() for message in messages)


def empty_field(field: str, config: DataConfig) -> BadRow:
    """Return the error of a row whose field has no text."""
    return BadRow(field, "empty", config.empty, "data.empty")


def prompt_columns(config: DataConfig, row_format: Format) -> frozenset[str]:
    """Return the columns that a prompt is read from; all others are extra columns of the prompt."""
    own = {Format.columns: (), Format.rated_rows: ("completions",)}.get(row_format, _PROMPT_COLUMNS)
    return frozenset((config.prompt_column, *own))


def required_prompt_columns(config: DataConfig, row_format: Format) -> dict[str, str]:
    """Return the columns that rows of prompts must have, each with the option that names it."""
    is_named = row_format in (Format.columns, Format.rated_rows)
    return {config.prompt_column: "data.prompt_column"} if is_named else {}


def read_prompt(row: Row, config: DataConfig, row_format: Format) -> list[Message]:
    """Return the conversation of a row up to the response, which the row may include or not.

    Raises BadRow for a row of another form, and for an empty prompt.
    """
    if row_format is Format.alpaca:
        messages = _alpaca_prompt(row)
    else:
        field, value = _prompt_value(row, config, row_format)
        if field not in row:
            field = "chosen" if row_format in _CONVERSATIONS and "chosen" in row else field
            value = column(row, field)
        messages = _conversation(value, field, row_format)
        if row_format is not Format.rated:
            messages = _without_response(messages, field)
        if row_format is Format.sharegpt:
            messages = _with_system(row, messages)
    if is_empty(messages):
        raise empty_field(config.prompt_column, config)
    return messages


def read_comparison(row: Row, config: PreferenceDataConfig, row_format: Format) -> Comparison:
    """Return the prompt and answers of a row; raise BadRow for a row of another form."""
    if row_format in (Format.rated, Format.rated_rows):
        return _rated(row, config)
    if row_format is Format.alpaca:
        return Comparison(_alpaca_prompt(row), _alpaca_answers(row, config))
    if row_format is Format.columns and config.ranking_column is not None:
        prompt = column(row, config.prompt_column)
        if prompt in (None, []):
            raise empty_field(config.prompt_column, config)
        return Comparison(as_messages(prompt, config.prompt_column), _listed(row, config.ranking_column, config))
    return _pair(row, config, row_format)


def _pair(row: Row, config: PreferenceDataConfig, row_format: Format) -> Comparison:
    """Read a better and a worse answer: texts, messages, or complete conversations."""
    fields = (config.chosen_column, config.rejected_column)
    if row_format is Format.messages and "preferred_output" in row:  # OpenAI's preference format
        fields = ("preferred_output", "non_preferred_output")
    values = _both(row, fields, config)
    prompt_field, value = _prompt_value(row, config, row_format)
    if value is None and row_format is Format.columns and all(isinstance(one, str) for one in values):
        if prompt_field in row:
            raise empty_field(prompt_field, config)
        raise BadRow(prompt_field, "answers are plain strings and there is no prompt; set data.prompt_column")
    left, right = (
        _answer_messages(one, field, row_format, value is not None) for one, field in zip(values, fields, strict=True)
    )
    are_complete = len(left) > 1 and len(right) > 1
    if value is None or (row_format is Format.messages and prompt_field == "messages" and are_complete):
        shared = 0
        while shared < min(len(left), len(right)) - 1 and left[shared] == right[shared]:
            shared += 1
        messages = left[:shared]
    else:
        messages = _conversation(value, prompt_field, row_format)
        messages = _without_response(messages, prompt_field) if row_format in _CONVERSATIONS else messages
    answers = [(field, _answer(one, messages, field)) for field, one in zip(fields, (left, right), strict=True)]
    return Comparison(_with_system(row, messages) if row_format is Format.sharegpt else messages, answers)


def _both(row: Row, fields: tuple[str, str], config: DataConfig) -> list[Any]:
    values = [column(row, field) for field in fields]
    for field, value in zip(fields, values, strict=True):
        if value in (None, "", []):
            raise empty_field(field, config)
    return values


def _answer_messages(value: Any, field: str, row_format: Format, has_prompt: bool) -> list[Message]:
    if row_format is Format.hh and has_prompt and isinstance(value, str) and not is_hh(value):
        return [{"role": "assistant", "content": value.strip()}]
    if row_format is not Format.hh and isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return _conversation(value, field, row_format)


def _answer(messages: list[Message], prompt: list[Message], field: str) -> str:
    """Return the text of an answer, which may repeat the prompt before it."""
    rest = messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
    if not prompt or len(rest) != 1 or rest[0]["role"] != "assistant":
        roles = [message["role"] for message in messages]
        raise BadRow(field, f"wanted a prompt and then one assistant message, got {roles}")
    return rest[0]["content"]


def _prompt_value(row: Row, config: DataConfig, row_format: Format) -> tuple[str, Any]:
    """Return the column of a prompt and its value, which is None where the row does not have it."""
    openai = row.get("input")
    if row_format is Format.messages and isinstance(openai, dict) and "messages" in openai:
        return "input", openai["messages"]
    names: dict[Format, tuple[str, ...]] = {
        Format.messages: (config.prompt_column, "messages"),
        Format.sharegpt: ("conversations",),
        Format.rated: (config.prompt_column, "instruction"),
    }
    candidates = names.get(row_format, (config.prompt_column,))
    field = next((name for name in candidates if name in row), candidates[-1])
    return field, row.get(field)


def _conversation(value: Any, field: str, row_format: Format) -> list[Message]:
    """Return the messages of a value; none where it is null. Raises BadRow for other forms."""
    if value is None:
        return []
    if row_format is Format.hh:
        return _transcript(value, field)
    return _sharegpt(value, field) if row_format is Format.sharegpt else as_messages(value, field)


def as_messages(value: Any, field: str) -> list[Message]:
    """Return chat messages. A string becomes one user message; text parts are joined.

    Raises BadRow for a value of another form; `field` is its column.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise BadRow(field, f"got {type(value).__name__}, wanted a string or a list of messages")
    return [_message(one, field) for one in messages]


def _message(value: Any, field: str) -> Message:
    if not isinstance(value, dict):
        raise BadRow(field, f"a message is an object with `role` and `content`, got {type(value).__name__}")
    role, content = value.get("role"), value.get("content")
    if isinstance(content, list):
        content = "".join(_text_part(part, field) for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        found = [type(value[key]).__name__ if key in value else "none" for key in ("role", "content")]
        raise BadRow(field, f"a message needs `role` and `content` strings, got {found[0]} and {found[1]}")
    return {"role": role, "content": content}


def _text_part(part: Any, field: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    text = part.get("text") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(text, str):
        found = f"text of type {type(text).__name__}" if kind == "text" else f"a part of type {kind}"
        raise BadRow(field, f"a message may contain text only, got {found}")
    return text


def _transcript(value: Any, field: str) -> list[Message]:
    """Return the turns of a transcript, without the spaces around each."""
    if not isinstance(value, str):
        raise BadRow(field, f"got {type(value).__name__}, wanted a transcript, '\\n\\nHuman: ...\\n\\nAssistant: ...'")
    before, *turns = _SPEAKER.split(value)
    if before.strip() or not turns:
        raise BadRow(field, "a transcript begins with '\\n\\nHuman:'")
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [{"role": _HH_ROLES[who], "content": text.strip()} for who, text in pairs]


def _sharegpt(value: Any, field: str) -> list[Message]:
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRow(field, f"got {type(value).__name__}, wanted a list of turns with `from` and `value`")
    messages = []
    for turn in turns:
        speaker, text = turn.get("from"), turn.get("value")
        if not isinstance(speaker, str) or not isinstance(text, str):
            raise BadRow(field, f"a turn needs `from` and `value` strings, got {sorted(map(str, turn))}")
        if speaker not in _SHAREGPT_ROLES:
            raise BadRow(field, f"a turn is from {speaker!r}, wanted {', '.join(_SHAREGPT_ROLES)}")
        messages.append({"role": _SHAREGPT_ROLES[speaker], "content": text})
    return messages


def _without_response(messages: list[Message], field: str) -> list[Message]:
    """Return a conversation without the assistant's messages at its end."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    if messages and not end:
        raise BadRow(field, "this conversation has no prompt: only the assistant speaks")
    return messages[:end]


def _with_system(row: Row, messages: list[Message]) -> list[Message]:
    """Put the text of the column `system` before a conversation that has no system message."""
    system = row.get("system")
    if system is None or not messages or messages[0]["role"] == "system":
        return messages
    text = _string(system, "system")
    return [{"role": "system", "content": text}, *messages] if text.strip() else messages


def _string(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise BadRow(field, f"got {type(value).__name__}, wanted a string")
    return value


def _alpaca_prompt(row: Row) -> list[Message]:
    instruction, more = column(row, "instruction"), row.get("input")
    if instruction is None:
        return []
    if not isinstance(instruction, str) or not isinstance(more, str | None):
        raise BadRow("instruction", "wanted strings in `instruction` and `input`")
    messages: list[Message] = []
    for turn in row.get("history") or ():
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise BadRow("history", "wanted a list of [question, answer] pairs")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    messages.append({"role": "user", "content": f"{instruction}\n{more}" if more else instruction})
    return _with_system(row, messages)


def _alpaca_answers(row: Row, config: PreferenceDataConfig) -> list[tuple[str, str]]:
    if "output_1" not in row:
        if isinstance(row.get("output"), list):
            return _listed(row, "output", config)
        fields = (config.chosen_column, config.rejected_column)
        values = _both(row, fields, config)
        return [(field, _string(value, field)) for field, value in zip(fields, values, strict=True)]
    answers = [(field, _string(column(row, field), field)) for field in ("output_1", "output_2")]
    value = column(row, "preference")
    preference = as_number(value)
    if preference not in (1, 2):
        raise BadRow("preference", f"wanted 1 or 2, the number of the better output, got {value!r}")
    return answers if preference == 1 else answers[::-1]


def _listed(row: Row, field: str, config: PreferenceDataConfig) -> list[tuple[str, str]]:
    texts = column(row, field)
    if texts in (None, []):
        raise empty_field(field, config)
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise BadRow(field, "wanted a list of two or more strings, the best first")
    return [(field, text) for text in texts]


def _rated(row: Row, config: PreferenceDataConfig) -> Comparison:
    """Rank the completions of a row by their ratings; one without a rating does not count.

    An answer that occurs several times counts once, with the mean of its ratings.
    """
    field, value = _prompt_value(row, config, Format.rated)
    if field not in row:
        raise BadRow(field, "missing")
    messages, completions = _conversation(value, field, Format.rated), column(row, "completions")
    if not isinstance(completions, list) or not all(isinstance(one, dict) for one in completions):
        raise BadRow("completions", "wanted a list of completions, each with a response and a rating")
    ratings: dict[str, list[float]] = {}
    for one in completions:
        if config.response_column not in one:
            raise BadRow(f"completions.{config.response_column}", "missing")
        text, rating = one[config.response_column], _rating(one, config.score_column)
        text = "" if text is None else _string(text, f"completions.{config.response_column}")
        if rating is not None:
            ratings.setdefault(text, []).append(rating)
    means = {text: math.fsum(several) / len(several) for text, several in ratings.items()}
    if len(means) < 2:
        raise BadRow("completions", "fewer than two rated answers", RowPolicy.drop)
    levels = sorted(set(means.values()), reverse=True)
    if len(levels) == 1:
        raise BadRow("completions", "equal ratings", config.equal, "data.equal")
    texts = sorted(means, key=lambda text: -means[text])
    ranks = tuple(levels.index(means[text]) for text in texts)
    return Comparison(messages, [("completions", text) for text in texts], ranks if len(levels) < len(texts) else ())


def _rating(completion: Row, score_column: str | None) -> float | None:
    """Return the rating of a completion; None where it has none."""
    name = score_name(completion, score_column)
    if name is None:
        if score_column is not None:
            raise BadRow(f"completions.{score_column}", "missing")
        raise BadRow("completions", f"no rating, wanted one of {', '.join(SCORES)}; set data.score_column")
    return number_or_none(completion[name], f"completions.{name}")
