"""Chat templates: the tokenizer's own or a default, and what one writes around a response.

docs/conversations.md shows the default template and explains how conversations are rendered.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_path
from rlhf_cli.config.sections import DEFAULT_TEMPLATE
from rlhf_cli.data.special_tokens import SpecialTokens
from rlhf_cli.system.text import one_line

Message = dict[str, str]  # role and content

_DEFAULT = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_QUESTION, _RESPONSE = "Question Zyqvx", "Answer Xqvyz"  # probes: texts that no template contains
_SPACES = " \n"  # put around a probe to see whether a template trims responses


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template for tokenizers without one: BOS if they add it, EOS after every turn."""
    bos = tokenizer.bos_token_id
    writes_bos = bos is not None and tokenizer("a")["input_ids"][0] == bos
    return "{{ bos_token }}" + _DEFAULT if writes_bos else _DEFAULT


def set_template(tokenizer: PreTrainedTokenizerBase, source: str | None, option: str) -> None:
    """Set the chat template of a tokenizer, and check it.

    source: `default`, a Jinja file, or None for the tokenizer's own template, if it has one. Raises
    InputError for a missing file, and for a template that is not Jinja or renders no conversation.
    """
    if source == DEFAULT_TEMPLATE:
        tokenizer.chat_template = default_template(tokenizer)
    elif source is not None:
        try:
            tokenizer.chat_template = Path(resolve_path(source, option)).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            wanted = f"wanted a Jinja file in UTF-8, or {DEFAULT_TEMPLATE}"
            raise InputError(f"{option}={source}: cannot be read ({one_line(error, 200)}), {wanted}") from error
    if tokenizer.chat_template is not None:
        _check(ChatTemplate(tokenizer), f"{option}={source}" if source else f"{option}, the tokenizer's own")


def _check(template: ChatTemplate, name: str) -> None:
    failures = []
    for roles in (("user",), ("system", "user"), ("system",)):
        try:
            template.render(_probe(*roles), generation_prompt=True)
        except RenderError as error:
            failures.append(error)
        else:
            return
    raise InputError(f"{name}: renders no conversation: {failures[0]}")


class RenderError(Exception):
    """A template that does not render a conversation; the message is one line."""


class ChatTemplate:
    """A chat template with its tokenizer. `text` replaces the tokenizer's own template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._text = text

    def render(self, messages: list[Message], generation_prompt: bool) -> str:
        """Return a conversation as text; raise RenderError where the template refuses it."""
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, chat_template=self._text, tokenize=False, add_generation_prompt=generation_prompt
            )
        except TemplateSyntaxError as error:
            raise RenderError(f"line {error.lineno}: {one_line(error.message, 200)}") from error
        except TemplateError as error:
            raise RenderError(one_line(error, 200)) from error
        except Exception as error:  # a template is a program, and any of its operations may fail
            raise RenderError(f"{type(error).__name__}: {one_line(error, 200)}") from error
        return text


@dataclass(frozen=True)
class ResponseFormat:
    """What a template writes around a response."""

    prompt: str = ""  # the rendered probe prompt, up to the response
    header: str = ""  # written before a response, but not part of the template's generation prompt
    lead: str = ""  # spaces between the prompt and the response
    tail: str = ""  # written after the response
    trims: bool = False  # whether the template strips the response
    conversations: str = ""  # the probes rendered without a generation prompt

    def end_id(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return the added token after a response; EOS where other text follows, or nothing."""
        found = SpecialTokens(tokenizer, self.tail).first_id(self.tail.lstrip())
        eos: int = tokenizer.eos_token_id
        return eos if found is None else found


def response_format(template: ChatTemplate, system_prompt: str | None = None) -> ResponseFormat:
    """Find out what a template writes around a response; nothing where every probe fails.

    system_prompt: what the run puts before conversations; the template may require or refuse it.
    """
    given = () if system_prompt is None else ("system",)
    for roles in dict.fromkeys([(*given, "user"), ("user",), ("system", "user")]):
        try:
            found = _probe_format(template, _probe(*roles, system=system_prompt))
        except RenderError:
            continue
        if found is not None:
            return found
    return ResponseFormat()


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a response: the one that the template writes, or EOS."""
    has_template = tokenizer.chat_template is not None
    return (response_format(ChatTemplate(tokenizer)) if has_template else ResponseFormat()).end_id(tokenizer)


def _probe_format(template: ChatTemplate, prompt: list[Message]) -> ResponseFormat | None:
    full = template.render([*prompt, _response(_RESPONSE)], generation_prompt=False)
    asking, bare = (template.render(prompt, generation_prompt) for generation_prompt in (True, False))
    spaced = template.render([*prompt, _response(f"{_SPACES}{_RESPONSE}{_SPACES}")], generation_prompt=False)
    before, found, tail = full.rpartition(_RESPONSE)
    if not found:
        return None
    between = before.removeprefix(asking) if before.startswith(asking) else ""
    header = between.rstrip(" ") if asking == bare and between.strip() else ""
    lead = between.removeprefix(header)
    try:
        longer = template.render([*prompt, _response(_RESPONSE), *_probe("user")], generation_prompt=False)
    except RenderError:
        longer = ""
    return ResponseFormat(
        asking + header, header, lead if not lead.strip() else "", tail, spaced == full, bare + tail + longer
    )


def _probe(*roles: str, system: str | None = None) -> list[Message]:
    texts = {"user": _QUESTION, "system": system or "SYSTEM"}
    return [{"role": role, "content": texts[role]} for role in roles]


def _response(text: str) -> Message:
    return {"role": "assistant", "content": text}
