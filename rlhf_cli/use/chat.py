"""`rlhf chat`: talk with a policy in the terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from prompt_toolkit import PromptSession

from rlhf_cli.config.errors import InputError, RewardError, require_text
from rlhf_cli.data.chat_template import Message
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.system.text import printable
from rlhf_cli.use.cli_options import Loading, Rewarding, Sampling
from rlhf_cli.use.response_scorer import ResponseScorer
from rlhf_cli.use.responses import load_policy
from rlhf_cli.use.trained_policy import Typist

HELP = """\
/reset  forget the conversation
/retry  answer the last message anew, with other draws
/quit   leave, as Ctrl-D does
Ctrl-C  stop an answer, and what there is of it stays in the conversation; or stop its scoring
"""


@dataclass(frozen=True)
class Chat:
    """What was asked for."""

    model: str
    rewarding: Rewarding | None
    loading: Loading
    sampling: Sampling


class Speaker(Protocol):
    """What is asked of a policy."""

    renderer: Renderer

    def prompt_ids(self, messages: list[Message]) -> tuple[int, ...]:
        """Return the ids of a conversation up to an answer; raise InputError where none has room."""

    def stream(self, prompt: tuple[int, ...], key: str, greedy: bool = False) -> Generator[int, None, None]:
        """Yield the tokens of one answer as they are drawn."""


class Conversation:
    """What has been said, and who says what comes next; `say` shows text as it comes."""

    def __init__(
        self, policy: Speaker, judge: ResponseScorer | None, sampling: Sampling, say: Callable[[str], None]
    ) -> None:
        self.messages: list[Message] = []
        self._policy = policy
        self._judge = judge
        self._sampling = sampling
        self._say = say
        self._tries = 0  # at the newest answer

    def reset(self) -> None:
        """Forget all that was said."""
        self.messages.clear()

    def send(self, text: str) -> None:
        """Say something, and show the answer.

        Raises InputError for what is no UTF-8, and where an answer has no room left; nothing was said.
        """
        require_text("message", text)
        self._tries = 0
        self._answer([*self.messages, {"role": "user", "content": text}])

    def retry(self) -> None:
        """Answer the newest message anew; raise InputError where there is none."""
        if not self.messages:
            raise InputError("nothing has been said yet")
        self._tries += 1
        self._answer(self.messages[:-1])

    def _answer(self, asked: list[Message]) -> None:
        prompt = self._policy.prompt_ids(asked)
        key = f"{self._sampling.seed}/chat/{len(asked)}/{self._tries}"
        typist, end, count = Typist(self._policy.renderer), "stopped", 0
        try:
            with closing(self._policy.stream(prompt, key, self._sampling.greedy)) as tokens:
                for count, token in enumerate(tokens, 1):  # noqa: B007
                    self._say(printable(typist.add(token)))
            end = ""
        except KeyboardInterrupt:
            pass  # what there is of the answer counts
        self._say(printable(typist.rest()) + "\n")
        self.messages = [*asked, {"role": "assistant", "content": typist.text}]
        notes = [f"{count} tokens", *([end] if end else []), *self._scored(asked, typist.text)]
        self._say(f"[{', '.join(notes)}]\n")

    def _scored(self, asked: list[Message], text: str) -> list[str]:
        if self._judge is None:
            return []
        try:
            exchange = Exchange(self._policy.renderer.with_system(asked), text)
            return [f"score {self._judge.score([exchange])[0]:+.3f}"]
        except (InputError, RewardError) as error:  # the conversation can go on without
            return [printable(f"no score: {error}")]
        except KeyboardInterrupt:  # a service that is slow
            return ["no score: stopped"]


def run(wanted: Chat) -> None:
    """Talk until /quit, Ctrl-D or the end of standard input."""
    judge = None if wanted.rewarding is None else ResponseScorer.of(wanted.rewarding, "--reward")
    try:
        policy = load_policy(wanted.model, wanted.loading, wanted.sampling)
        _say(printable(f"{wanted.model}: /help lists the commands\n"))
        talk(Conversation(policy, judge, wanted.sampling, _say), reader(), _say)
    finally:
        if judge is not None:
            judge.close()


def talk(conversation: Conversation, read: Callable[[], str], say: Callable[[str], None]) -> None:
    """Read messages and commands until the end; read: raises EOFError there, and KeyboardInterrupt at Ctrl-C."""
    while True:
        try:
            text = read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            say("(/quit or Ctrl-D leaves)\n")
            continue
        if text in ("/quit", "/exit"):
            return
        try:
            _obey(conversation, text, say)
        except InputError as error:
            say(printable(f"{error}; /reset starts anew\n"))


def _obey(conversation: Conversation, text: str, say: Callable[[str], None]) -> None:
    if text == "/reset":
        conversation.reset()
        say("(forgotten)\n")
    elif text == "/retry":
        conversation.retry()
    elif text.startswith("/"):
        say(HELP if text == "/help" else printable(f"there is no {text.split()[0]}; there are:\n{HELP}"))
    elif text:
        conversation.send(text)


def reader() -> Callable[[], str]:
    """Return what reads a line: with editing and history on a terminal, plainly elsewhere."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # one odd line is refused, and the chat goes on
        return input
    session: PromptSession[str] = PromptSession("> ")
    return session.prompt


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
