"""Conversations to token ids: one rendering for reward-model training, its evaluation, and PPO.

docs/conversations.md says what is rendered how, and what is not.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_cli.config.sections import DataConfig
from rlhf_cli.data.bad_rows import BadRow
from rlhf_cli.data.chat_template import Message as Message
from rlhf_cli.data.chat_template import RefusedError, Template, Turn, default_template, turn_of
from rlhf_cli.data.special_tokens import SpecialTokens
from rlhf_cli.data.token_batches import TokenSequence

_SHOWN = ("system", "user")  # roles whose every word must be in the prompt; of an answer a template may leave out parts


class Renderer:
    """Turns prompts and answers into ids with one tokenizer and one set of data options.

    Every way of it uses the tokenizer's template; without one a prompt of one message is plain text, and any other
    prompt is rendered with the default template. end_id: the token that ends an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        self.tokenizer = tokenizer
        self.system_prompt = config.system_prompt
        self.use_template = config.apply_chat_template and tokenizer.chat_template is not None
        self._template: Template | None = None
        if config.apply_chat_template:
            self._template = Template(tokenizer, None if self.use_template else default_template(tokenizer))
        self._turn = Turn("") if self._template is None else turn_of(self._template, self.system_prompt) or Turn("")
        self._special = SpecialTokens(tokenizer, self._turn.others)
        self.end_id: int = _end_of(self._turn, tokenizer) if self.use_template else tokenizer.eos_token_id
        context = self._special.from_last(self._turn.asked) if self.use_template else ""
        self._contexts = [(text, self._special.ids(text)) for text in (context, "\n")]
        self._adds = _added_around(tokenizer)

    @property
    def notes(self) -> list[str]:
        """What a user should know of the rendering, one line each."""
        if not self.use_template and self._template is not None:
            what = "a prompt of one message is plain text, any other is rendered with the default template"
            return [f"the tokenizer has no chat template: {what}; see model.chat_template"]
        return []

    def prompt_ids(self, messages: list[Message]) -> tuple[int, ...]:
        """Return the ids of a prompt, up to where the answer starts (the template's generation prompt included).

        Raises BadRow where the template refuses the messages or leaves one of them out.
        """
        messages = self.with_system(messages)
        if not self._is_rendered(messages):
            return self._plain_ids(_joined(messages))
        return self._special.ids(self._templated(self._hidden(messages)))

    def response_ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of an answer, ended by one end token (its own, if the text has one), as the policy makes them.

        Special tokens that the text spells elsewhere are text, where the tokenizer has a template.
        """
        text = self._special.without_end(text, {self.end_id, self.tokenizer.eos_token_id})
        if not self.use_template:
            return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.end_id)
        return (*self._answer_ids(text.strip() if self._turn.trims else text), self.end_id)

    def sequence(self, messages: list[Message], answer: str) -> TokenSequence:
        """Return the ids of a prompt and of an answer to it."""
        return TokenSequence(self.prompt_ids(messages), self.response_ids(answer))

    def conversation_text(self, messages: list[Message], answer: str) -> str:
        """Return a prompt and an answer as the template writes a whole conversation, all behind the answer included.

        Plain text where no template is used: the answer stands right behind the prompt.
        """
        messages = self.with_system(messages)
        answer = self._special.without_end(answer, {self.end_id, self.tokenizer.eos_token_id})
        if not self._is_rendered(messages):
            return _joined(messages) + answer
        return self._whole([*messages, {"role": "assistant", "content": answer}])

    def whole_ids(self, messages: list[Message], answer: str) -> tuple[int, ...]:
        """Return the ids of the whole rendered conversation, for models that were trained on such.

        Other than those of `sequence` they hold what the template writes behind the end token, and what it makes of
        the answer. Without a template they are the same.
        """
        messages = self.with_system(messages)
        if not self._is_rendered(messages):
            return self.sequence(messages, answer).ids
        answer = self._special.without_end(answer, {self.end_id, self.tokenizer.eos_token_id})
        return self._special.ids(self._whole(self._hidden([*messages, {"role": "assistant", "content": answer}])))

    def answer_text(self, ids: tuple[int, ...]) -> str:
        """Return the text of response ids without their end token and special tokens, its spaces as they are.

        What `response_ids` makes of a text becomes that text, where the tokenizer loses nothing; a space that the
        template writes before answers is left out.
        """
        if ids[-1:] == (self.end_id,):
            ids = ids[:-1]
        # some decoders write a first token without its space
        context = self._contexts[0][1]
        before, text = self._shown(context), self._shown((*context, *ids))
        text = text[len(before) :] if text.startswith(before) else self._shown(ids)
        return text.removeprefix(self._turn.lead)

    def _shown(self, ids: tuple[int, ...]) -> str:
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

    def _is_rendered(self, messages: list[Message]) -> bool:
        return self.use_template or (self._template is not None and len(messages) > 1)

    def _templated(self, messages: list[Message]) -> str:
        return self._render(messages, generation_prompt=True) + (self._turn.header if self.use_template else "")

    def _whole(self, messages: list[Message]) -> str:
        return self._render(messages, generation_prompt=False)

    def _render(self, messages: list[Message], generation_prompt: bool) -> str:
        assert self._template is not None
        try:
            text = self._template.render(messages, generation_prompt)
        except RefusedError as error:
            roles = [message["role"] for message in messages]
            reason = f"the chat template refuses the roles {roles}: {error}; see data.system_prompt"
            raise BadRow("prompt", reason) from error
        for message in messages:
            if message["role"] in _SHOWN and message["content"].strip() not in text:
                reason = f"the chat template leaves out the {message['role']} message; see data.system_prompt"
                raise BadRow("prompt", reason)
        return text

    def _hidden(self, messages: list[Message]) -> list[Message]:
        return [{key: self._special.hide(text) for key, text in message.items()} for message in messages]

    def _answer_ids(self, text: str) -> tuple[int, ...]:
        """Return the ids that a text has behind a prompt; where its start melts into that, behind a line's end.

        Not those that it has alone: SentencePiece puts a space before such a text.
        """
        text = self._turn.lead + self._special.hide(text)
        for context, before in self._contexts:
            ids = self._special.ids(context + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self._special.ids(text)

    def _plain_ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text with the tokenizer's BOS, unless it brings its own, and without an EOS behind it."""
        ids = self.tokenizer(text)["input_ids"]
        first, last = self._adds
        doubled = first and ids[1:2] == [self.tokenizer.bos_token_id]
        return tuple(ids[int(doubled) : len(ids) - int(last)])

    def with_system(self, messages: list[Message]) -> list[Message]:
        """Return a conversation with the run's system prompt before it, unless it starts with one of its own."""
        if self.system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends an answer: the one that the tokenizer's template writes there, or EOS."""
    turn = None if tokenizer.chat_template is None else turn_of(Template(tokenizer))
    return _end_of(turn or Turn(""), tokenizer)


def _end_of(turn: Turn, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the added token that stands behind an answer, spaces aside; EOS where other text does, or none."""
    at_end = SpecialTokens(tokenizer, turn.tail).at_start(turn.tail.lstrip())
    eos: int = tokenizer.eos_token_id
    return eos if at_end is None else at_end


def _added_around(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Say whether the tokenizer puts BOS before a plain text, and EOS behind it."""
    ids = tokenizer("a")["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return bos is not None and ids[0] == bos, ids[-1] == eos


def _joined(messages: list[Message]) -> str:
    return "\n\n".join(message["content"] for message in messages)


def as_messages(value: Any, field: str) -> list[Message]:
    """Return chat messages: a string becomes one user message, a list of text parts, as the OpenAI API has them, one
    text.

    Raises BadRow; `field` names the column in it.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise BadRow(field, f"got {type(value).__name__}, wanted a string or a list of messages")
    return [_message(one, field) for one in value]


def _message(value: Any, field: str) -> Message:
    if not isinstance(value, dict):
        raise BadRow(field, f"a message is an object with `role` and `content`, got {type(value).__name__}")
    role, content = value.get("role"), value.get("content")
    if isinstance(content, list):
        content = _text_of(content, field)
    if not isinstance(role, str) or not isinstance(content, str):
        found = [type(value[key]).__name__ if key in value else "none" for key in ("role", "content")]
        raise BadRow(field, f"a message needs `role` and `content` strings, got {found[0]} and {found[1]}")
    return {"role": role, "content": content}


def _text_of(parts: list[Any], field: str) -> str:
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            found = f"text of type {type(text).__name__}" if kind == "text" else f"a part of type {kind}"
            raise BadRow(field, f"a message holds something else than text: {found}")
        texts.append(text)
    return "".join(texts)


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
