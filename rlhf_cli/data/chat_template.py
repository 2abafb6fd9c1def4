"""Chat templates: which one a tokenizer has, the default for those without one, and what a template writes where.

docs/conversations.md shows the default and says what is rendered how.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_path
from rlhf_cli.config.sections import DEFAULT_TEMPLATE
from rlhf_cli.system.text import one_line

Message = dict[str, str]

_DEFAULT = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_QUESTION, _ANSWER = "Question Zyqvx", "Answer Xqvyz"  # what no template writes of its own
_SPACES = " \n"  # around a probe's answer, to see whether a template cuts them


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template of tokenizers without one: BOS where the tokenizer writes one, and EOS after every turn."""
    bos = tokenizer.bos_token_id
    writes_bos = bos is not None and tokenizer("a")["input_ids"][0] == bos
    return "{{ bos_token }}" + _DEFAULT if writes_bos else _DEFAULT


def set_template(tokenizer: PreTrainedTokenizerBase, source: str | None, option: str) -> None:
    """Give a tokenizer the template that an option asks for; unset, its own, if it has one, is looked at alone.

    source: `default`, or a Jinja file. Raises InputError for a file that is not there, and for a template, also the
    tokenizer's own, that is no Jinja or renders no conversation.
    """
    if source is not None:
        tokenizer.chat_template = default_template(tokenizer) if source == DEFAULT_TEMPLATE else _read(source, option)
    if tokenizer.chat_template is not None:
        _check(Template(tokenizer), f"{option}={source}" if source else f"{option}, the tokenizer's own")


def _read(source: str, option: str) -> str:
    path = Path(resolve_path(source, option))
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        wanted = f"wanted a Jinja file in UTF-8, or {DEFAULT_TEMPLATE}"
        raise InputError(f"{option}={source}: cannot be read ({one_line(error, 200)}), {wanted}") from error


def _check(template: Template, where: str) -> None:
    failures = []
    for roles in (("user",), ("system", "user"), ("system",)):
        try:
            template.render(_probe(*roles), generation_prompt=True)
        except RefusedError as error:
            failures.append(error)
        else:
            return
    raise InputError(f"{where}: renders no conversation: {failures[0]}")


class RefusedError(Exception):
    """A template that does not render a conversation; the message is one line."""


class Template:
    """A chat template with its tokenizer: conversations to text. Raises RefusedError where it does not render one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._text = text  # None: the tokenizer's own

    def render(self, messages: list[Message], generation_prompt: bool) -> str:
        """Return a conversation as text."""
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, chat_template=self._text, tokenize=False, add_generation_prompt=generation_prompt
            )
        except TemplateSyntaxError as error:
            raise RefusedError(f"line {error.lineno}: {one_line(error.message, 200)}") from error
        except TemplateError as error:
            raise RefusedError(one_line(error, 200)) from error
        except Exception as error:  # a template is a program, and any of its operations may fail
            raise RefusedError(f"{type(error).__name__}: {one_line(error, 200)}") from error
        return text


@dataclass(frozen=True)
class Turn:
    """What a template writes around the answer of an assistant."""

    asked: str  # the probe's prompt
    header: str = ""  # goes before an answer and is not in the template's generation prompt, as it has none
    lead: str = ""  # spaces between the prompt and an answer
    tail: str = ""  # goes behind an answer
    trims: bool = False  # whether the spaces around an answer are cut
    others: str = ""  # conversations without the beginning of an answer at their end


def turn_of(template: Template, system_prompt: str | None = None) -> Turn | None:
    """Ask a template what it writes around an answer; None where it refuses every probe, or does not show the answer.

    system_prompt: what the run puts before conversations, which the template may want or refuse.
    """
    given = () if system_prompt is None else ("system",)
    for roles in dict.fromkeys([(*given, "user"), ("user",), ("system", "user")]):
        try:
            turn = _turn(template, _probe(*roles, system=system_prompt))
        except RefusedError:
            continue
        if turn is not None:
            return turn
    return None


def _turn(template: Template, prompt: list[Message]) -> Turn | None:
    whole = template.render([*prompt, _answer(_ANSWER)], generation_prompt=False)
    asked, bare = (template.render(prompt, generation_prompt) for generation_prompt in (True, False))
    spaced = template.render([*prompt, _answer(f"{_SPACES}{_ANSWER}{_SPACES}")], generation_prompt=False)
    before, found, tail = whole.rpartition(_ANSWER)
    if not found:
        return None
    between = before.removeprefix(asked) if before.startswith(asked) else ""
    header = between.rstrip(" ") if asked == bare and between.strip() else ""
    lead = between.removeprefix(header)
    others = bare + tail + _or_nothing(template, [*prompt, _answer(_ANSWER), *_probe("user")])
    return Turn(asked + header, header, lead if not lead.strip() else "", tail, spaced == whole, others)


def _or_nothing(template: Template, messages: list[Message]) -> str:
    try:
        return template.render(messages, generation_prompt=False)
    except RefusedError:
        return ""


def _probe(*roles: str, system: str | None = None) -> list[Message]:
    texts = {"user": _QUESTION, "system": system or "SYSTEM"}
    return [{"role": role, "content": texts[role]} for role in roles]


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}
