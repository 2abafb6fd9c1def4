"""`rlhf chat`: a conversation with a policy in the terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from typing import Protocol

from prompt_toolkit import PromptSession

from rlhf_cli.config.errors import InputError, RewardError, require_text
from rlhf_cli.data.chat_template import Message
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.system.text import printable
from rlhf_cli.use.cli_options import Sampling
from rlhf_cli.use.commands import ChatOptions
from rlhf_cli.use.response_scorer import ResponseScorer
from rlhf_cli.use.trained_policy import TokenDecoder, TrainedPolicy

HELP = """\
/reset  start a new conversation
/retry  respond to the last message again, with other random numbers
/quit   leave; so does Ctrl-D
Ctrl-C  stop a response, whose text so far stays in the conversation; or stop its scoring
"""


class StreamingPolicy(Protocol):
    """What a conversation needs of a policy."""

    renderer: Renderer

    def prompt_ids(self, messages: list[Message]) -> tuple[int, ...]:
        """Return the token ids of a conversation; raise InputError if it is too long."""

    def stream(self, prompt: tuple[int, ...], key: str, greedy: bool = False) -> Generator[int, None, None]:
        """Yield the tokens of one response as they are sampled."""


class Conversation:
    """The messages so far, and the policy that responds to them."""

    def __init__(
        self,
        policy: StreamingPolicy,
        scorer: ResponseScorer | None,
        sampling: Sampling,
        write: Callable[[str], None],
    ) -> None:
        """write: shows text as it is generated."""
        self.messages: list[Message] = []
        self._policy = policy
        self._scorer = scorer
        self._sampling = sampling
        self._write = write
        self._num_retries = 0  # of the newest response

    def reset(self) -> None:
        """Forget all messages."""
        self.messages.clear()

    def send(self, text: str) -> None:
        """Add a message and show the response.

        Raises InputError, without a change, if the text is not UTF-8 or the conversation is too
        long.
        """
        require_text("message", text)
        self._num_retries = 0
        self._respond([*self.messages, {"role": "user", "content": text}])

    def retry(self) -> None:
        """Respond to the newest message again; raise InputError if there is none."""
        if not self.messages:
            raise InputError("there is no message yet")
        self._num_retries += 1
        self._respond(self.messages[:-1])

    def _respond(self, messages: list[Message]) -> None:
        prompt = self._policy.prompt_ids(messages)
        key = f"{self._sampling.seed}/chat/{len(messages)}/{self._num_retries}"
        decoder, notes, count = TokenDecoder(self._policy.renderer), ["stopped"], 0
        try:
            with closing(self._policy.stream(prompt, key, self._sampling.greedy)) as tokens:
                for count, token in enumerate(tokens, 1):  # noqa: B007
                    self._write(printable(decoder.add(token)))
            notes = []
        except KeyboardInterrupt:
            pass  # the text so far is the response
        self._write(printable(decoder.rest()) + "\n")
        self.messages = [*messages, {"role": "assistant", "content": decoder.text}]
        if self._scorer is not None:
            notes.append(self._score(self._scorer, messages, decoder.text))
        self._write(f"[{', '.join([f'{count} tokens', *notes])}]\n")

    def _score(self, scorer: ResponseScorer, messages: list[Message], response: str) -> str:
        try:
            exchange = Exchange(self._policy.renderer.with_system(messages), response)
            return f"score {scorer.score([exchange])[0]:+.3f}"
        except (InputError, RewardError) as error:  # the conversation can continue without a score
            return printable(f"no score: {error}")
        except KeyboardInterrupt:  # the service is slow
            return "no score: stopped"


def run(options: ChatOptions) -> None:
    """Chat until /quit, Ctrl-D or the end of standard input."""
    with nullcontext() if options.reward is None else closing(ResponseScorer.open(options.reward)) as scorer:
        policy = TrainedPolicy(options.policy, options.loading)
        _write(printable(f"{policy.name}: /help lists the commands\n"))
        chat(Conversation(policy, scorer, options.sampling, _write), line_reader(), _write)


def chat(conversation: Conversation, read: Callable[[], str], write: Callable[[str], None]) -> None:
    """Handle messages and commands until `read` raises EOFError."""
    while True:
        try:
            text = read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            write("(/quit or Ctrl-D leaves)\n")
            continue
        if text in ("/quit", "/exit"):
            return
        try:
            _handle(conversation, text, write)
        except InputError as error:
            write(printable(f"{error}; /reset starts a new conversation\n"))


def _handle(conversation: Conversation, text: str, write: Callable[[str], None]) -> None:
    if text == "/reset":
        conversation.reset()
        write("(new conversation)\n")
    elif text == "/retry":
        conversation.retry()
    elif text.startswith("/"):
        write(HELP if text == "/help" else printable(f"unknown command {text.split()[0]}; the commands are:\n{HELP}"))
    elif text:
        conversation.send(text)


def line_reader() -> Callable[[], str]:
    """Return a function that reads a line, with editing and history on a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 must not end the chat
        return input
    session: PromptSession[str] = PromptSession("> ")
    return session.prompt


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
