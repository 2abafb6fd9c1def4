"""Conversations to token ids: one rendering for reward-model training, its evaluation, and PPO.

docs/conversations.md explains what is rendered how.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from rlhf_cli.config.sections import DataConfig
from rlhf_cli.data.bad_rows import BadRow
from rlhf_cli.data.chat_template import (
    ChatTemplate,
    Message,
    RenderError,
    ResponseFormat,
    default_template,
    response_format,
)
from rlhf_cli.data.special_tokens import SpecialTokens
from rlhf_cli.data.token_batches import TokenSequence

_COMPLETE_ROLES = ("system", "user")  # of earlier responses a template may leave out parts


class Renderer:
    """Turns prompts and responses into token ids, with one tokenizer and one set of data options.

    Uses the tokenizer's template. Without one, a prompt of one message is plain text, and any other
    prompt is rendered with the default template. end_id: the token that ends a response.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        self.tokenizer = tokenizer
        self.system_prompt = config.system_prompt
        self.use_template = config.apply_chat_template and tokenizer.chat_template is not None
        self._template: ChatTemplate | None = None
        self._format = ResponseFormat()
        if config.apply_chat_template:
            self._template = ChatTemplate(tokenizer, None if self.use_template else default_template(tokenizer))
            self._format = response_format(self._template, self.system_prompt)
        self._special = SpecialTokens(tokenizer, self._format.conversations)
        self.end_id: int = self._format.end_id(tokenizer) if self.use_template else tokenizer.eos_token_id
        context = self._special.from_last(self._format.prompt) if self.use_template else ""
        self._contexts = [(text, self._special.ids(text)) for text in (context, "\n")]
        probe = tokenizer("a")["input_ids"]
        self._adds_bos = tokenizer.bos_token_id is not None and probe[0] == tokenizer.bos_token_id
        self._adds_eos = probe[-1] == tokenizer.eos_token_id

    @property
    def notes(self) -> list[str]:
        """What a user should know about the rendering, one line each."""
        if not self.use_template and self._template is not None:
            what = "a prompt of one message is plain text, any other is rendered with the default template"
            return [f"the tokenizer has no chat template: {what}; see model.chat_template"]
        return []

    def with_system(self, messages: list[Message]) -> list[Message]:
        """Put the run's system prompt before a conversation that does not start with its own."""
        if self.system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]

    def prompt_ids(self, messages: list[Message]) -> tuple[int, ...]:
        """Return the ids of a prompt up to where the response starts, generation prompt included.

        Raises BadRow where the template refuses the messages or leaves one of them out.
        """
        messages = self.with_system(messages)
        if not self._is_rendered(messages):
            return self._plain_ids("\n\n".join(message["content"] for message in messages))
        text = self._render(messages, generation_prompt=True)
        return self._special.ids(text + (self._format.header if self.use_template else ""))

    def response_ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a response as the policy generates it, with exactly one end token.

        With a template, special tokens that the text spells elsewhere stay text.
        """
        text = self._special.without_end(text, {self.end_id, self.tokenizer.eos_token_id})
        if not self.use_template:
            return (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.end_id)
        return (*self._ids_after_prompt(text.strip() if self._format.trims else text), self.end_id)

    def sequence(self, messages: list[Message], response: str) -> TokenSequence:
        """Return the ids of a prompt and of a response to it."""
        return TokenSequence(self.prompt_ids(messages), self.response_ids(response))

    def conversation_ids(self, messages: list[Message], response: str) -> tuple[int, ...]:
        """Return the ids of a complete conversation, for reward models that were trained on such.

        Unlike `sequence`, they include what the template writes after the end token, and the
        template's own changes to the response. Without a template the two are equal.
        """
        messages = self.with_system(messages)
        if not self._is_rendered(messages):
            return self.sequence(messages, response).ids
        response = self._special.without_end(response, {self.end_id, self.tokenizer.eos_token_id})
        conversation = [*messages, {"role": "assistant", "content": response}]
        return self._special.ids(self._render(conversation, generation_prompt=False))

    def response_text(self, ids: tuple[int, ...]) -> str:
        """Return the text of a response without end token and special tokens, and with its spaces.

        This inverts `response_ids` where the tokenizer loses nothing. A space that the template
        writes before responses is left out.
        """
        if ids[-1:] == (self.end_id,):
            ids = ids[:-1]
        context = self._contexts[0][1]  # some decoders omit the space of a first token
        before, text = (self._decode(some, skip_special=True) for some in (context, (*context, *ids)))
        text = text[len(before) :] if text.startswith(before) else self._decode(ids, skip_special=True)
        return text.removeprefix(self._format.lead)

    def pieces(self, ids: tuple[int, ...], values: list[float]) -> tuple[list[str], list[float]]:
        """Split the text of response ids into pieces, and sum the values of each piece's tokens.

        A piece is one token, or several that make up complete characters. Special tokens are shown.
        """
        pieces: list[str] = []
        sums: list[float] = []
        done = 0  # ids before this make complete characters
        context = 0  # decoding starts here: some decoders omit the space of a first token
        total = 0.0
        for end, value in enumerate(values, 1):
            total += value
            text = self._decode(ids[context:end])
            if text.endswith("\ufffd") and end < len(values):
                continue
            pieces.append(text[len(self._decode(ids[context:done])) :])
            sums.append(total)
            context, done, total = done, end, 0.0
        return pieces, sums

    def _decode(self, ids: tuple[int, ...], skip_special: bool = False) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
        return text

    def _is_rendered(self, messages: list[Message]) -> bool:
        return self.use_template or (self._template is not None and len(messages) > 1)

    def _render(self, messages: list[Message], generation_prompt: bool) -> str:
        """Render messages in which special tokens are hidden; raise BadRow."""
        assert self._template is not None
        hidden = [{key: self._special.hide(text) for key, text in message.items()} for message in messages]
        try:
            text = self._template.render(hidden, generation_prompt)
        except RenderError as error:
            roles = [message["role"] for message in messages]
            reason = f"the chat template refuses the roles {roles}: {error}; see data.system_prompt"
            raise BadRow("prompt", reason) from error
        for message in hidden:
            if message["role"] in _COMPLETE_ROLES and message["content"].strip() not in text:
                reason = f"the chat template leaves out the {message['role']} message; see data.system_prompt"
                raise BadRow("prompt", reason)
        return text

    def _ids_after_prompt(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text after a prompt, or after a newline where it merges with that.

        They may differ from the ids of the text alone: SentencePiece puts a space before it.
        """
        text = self._format.lead + self._special.hide(text)
        for context, before in self._contexts:
            ids = self._special.ids(context + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self._special.ids(text)

    def _plain_ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text with one BOS, if the tokenizer adds it, but no added EOS."""
        ids = self.tokenizer(text)["input_ids"]
        has_two = self._adds_bos and ids[1:2] == [self.tokenizer.bos_token_id]
        return tuple(ids[int(has_two) : len(ids) - int(self._adds_eos)])
