"""Conversations to token ids: one rendering for reward-model training, its evaluation, and PPO."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_cli.config.sections import DataConfig
from rlhf_cli.data.rows import BadRow
from rlhf_cli.data.tokens import Sequence

Message = dict[str, str]
_ANSWER = "ANSWER"


class Renderer:
    """Turns prompts and answers into ids with one tokenizer and one set of data options."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        self.tokenizer = tokenizer
        self.system_prompt = config.system_prompt
        self.use_template = config.apply_chat_template and tokenizer.chat_template is not None

    def prompt_ids(self, messages: list[Message]) -> tuple[int, ...]:
        """Return the ids of a prompt, up to where the answer starts (the template's generation prompt included)."""
        if self.use_template:
            text = self._templated(self.with_system(messages))
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        text = "\n\n".join(message["content"] for message in self.with_system(messages))
        return tuple(self.tokenizer(text)["input_ids"])

    def _templated(self, messages: list[Message]) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            roles = [message["role"] for message in messages]
            reason = f"the chat template refuses the roles {roles}: {error}; see data.system_prompt"
            raise BadRow("prompt", reason) from error
        return text

    def response_ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of an answer, ended by one EOS (its own, if the text has one), as the policy produces them."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tuple(ids) if ids[-1:] == [self.tokenizer.eos_token_id] else (*ids, self.tokenizer.eos_token_id)

    def sequence(self, messages: list[Message], answer: str) -> Sequence:
        """Return the ids of a prompt and of an answer to it."""
        return Sequence(self.prompt_ids(messages), self.response_ids(answer))

    def answer_text(self, ids: tuple[int, ...]) -> str:
        """Return the text of response ids without their end token, every space as it was sampled."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def response_text(self, ids: tuple[int, ...]) -> str:
        """Return the text of response ids, special tokens left out."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def pieces(self, ids: tuple[int, ...], figures: list[float]) -> tuple[list[str], list[float]]:
        """Return the text of response ids piece by piece, and the sum of the figures of each piece's tokens.

        A piece is one token, or as many as make whole characters; a special token stands as it is written.
        """
        pieces: list[str] = []
        sums: list[float] = []
        done = 0  # ids before this make whole characters
        context = 0  # ids before this are told no more: some decoders write a first token without its space
        total = 0.0
        for place, figure in enumerate(figures, 1):
            total += figure
            text = self._decoded(ids[context:place])
            if text.endswith("\ufffd") and place < len(figures):
                continue
            pieces.append(text[len(self._decoded(ids[context:done])) :])
            sums.append(total)
            context, done, total = done, place, 0.0
        return pieces, sums

    def _decoded(self, ids: tuple[int, ...]) -> str:
        text: str = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text

    def after_answer(self) -> tuple[int, ...]:
        """Return the ids that the template writes after an answer; none without one, or where it refuses to."""
        if not self.use_template:
            return ()
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
        try:
            text: str = self.tokenizer.apply_chat_template(self.with_system(chat), tokenize=False)
        except TemplateError:
            return ()
        return tuple(self.tokenizer(text.rpartition(_ANSWER)[2], add_special_tokens=False)["input_ids"])

    def with_system(self, messages: list[Message]) -> list[Message]:
        """Return a conversation with the run's system prompt before it, unless it starts with one of its own."""
        if self.system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]


def as_messages(value: Any, field: str) -> list[Message]:
    """Return chat messages: a string becomes one user message. Raises BadRow; `field` names the column in it."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise BadRow(field, f"got {type(value).__name__}, wanted a string or a list of messages")
    messages = []
    for message in value:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise BadRow(field, f"a message needs `role` and `content` strings, got {sorted(message)}")
        messages.append({"role": role, "content": content})
    return messages


def split_answers(
    prompt: Any, chosen: Any, rejected: Any, fields: tuple[str, str, str]
) -> tuple[list[Message], str, str]:
    """Return (prompt messages, chosen text, rejected text) of one preference row; `fields` names the three columns.

    Answers are strings, or message lists that hold the answer alone or the whole conversation; without a prompt
    column the prompt is their common prefix. Raises BadRow for a row of another form.
    """
    asked, better, worse = fields
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise BadRow(asked, "answers are plain strings and there is no prompt; set data.prompt_column")
        return as_messages(prompt, asked), chosen, rejected
    left, right = as_messages(chosen, better), as_messages(rejected, worse)
    if prompt is None:
        shared = 0
        while shared < min(len(left), len(right)) - 1 and left[shared] == right[shared]:
            shared += 1
        messages = left[:shared]
    else:
        messages = as_messages(prompt, asked)
    return messages, _answer(left, messages, better), _answer(right, messages, worse)


def _answer(messages: list[Message], prompt: list[Message], field: str) -> str:
    rest = messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
    if not prompt or len(rest) != 1 or rest[0]["role"] != "assistant":
        roles = [message["role"] for message in messages]
        raise BadRow(field, f"wanted a prompt and then one assistant message, got {roles}")
    return rest[0]["content"]


def is_empty(messages: list[Message]) -> bool:
    """Say whether a prompt holds no text at all."""
    return not any(message["content"].strip() for message in messages)
