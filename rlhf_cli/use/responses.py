"""Several responses of a policy to each of many prompts, scored and written as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from rlhf_cli.config.errors import DiskError, InputError
from rlhf_cli.data.chat_template import Message
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.token_batches import TokenSequence, chunks
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.system.durable_files import write_durably
from rlhf_cli.use.cli_options import Sampling
from rlhf_cli.use.trained_policy import TrainedPolicy

_BATCHES_AT_A_TIME = 8  # the sampler groups their prompts by length


@dataclass(frozen=True)
class Response:
    """One response to one prompt."""

    prompt: Prompt
    sample: int  # its number among the responses to the prompt
    messages: list[Message]  # the prompt, with the system prompt that the policy read
    tokens: TokenSequence
    text: str
    ended: bool  # by an end token, rather than at max_new_tokens

    @property
    def num_tokens(self) -> int:
        """The tokens of the response, with its end token."""
        return len(self.tokens.response_ids)

    @property
    def exchange(self) -> Exchange:
        """What a reward scores: the conversation that the policy read, as in training."""
        return Exchange(self.messages, self.text, self.prompt.columns)

    def record(self, **more: Any) -> dict[str, Any]:
        """Return the response as a JSON object that `rlhf score` reads, with further fields."""
        fields = {
            "prompt": plain_prompt(self.messages),
            "response": self.text,
            "sample": self.sample,
            "num_tokens": self.num_tokens,
            "ended": self.ended,
            **more,
        }
        return with_columns(fields, self.prompt.columns)


def plain_prompt(messages: Sequence[Message]) -> str | list[Message]:
    """Return a row's prompt: the text of a single user message, else the messages."""
    is_plain = [message["role"] for message in messages] == ["user"]
    return messages[0]["content"] if is_plain else [dict(message) for message in messages]


def with_columns(fields: dict[str, Any], columns: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with a row's columns, which become row_NAME if a field has their name."""
    merged = dict(fields)
    for name, value in columns.items():
        free = name
        while free in fields or (free != name and free in columns):
            free = f"row_{free}"
        merged[free] = value
    return merged


def respond(policy: TrainedPolicy, prompts: Sequence[Prompt], num: int, sampling: Sampling) -> list[Response]:
    """Return `num` responses to every prompt, those to one prompt together.

    A response depends on the seed, the prompt's index and the sample's number alone, so two
    policies use the same random numbers. Raises InputError before it generates if a prompt is too
    long.
    """
    ids = [_prompt_ids(policy, index, prompt) for index, prompt in enumerate(prompts)]
    messages = [policy.renderer.with_system([dict(one) for one in prompt.messages]) for prompt in prompts]
    wanted = [(index, sample) for index in range(len(prompts)) for sample in range(num)]
    parts = chunks(wanted, _BATCHES_AT_A_TIME * policy.rollout.micro_batch_size)
    stderr, title = Console(stderr=True), f"{policy.name}: responses"
    sequences: list[TokenSequence] = []
    for part in track(parts, title, console=stderr, transient=True, disable=not sys.stderr.isatty()):
        keys = [f"{sampling.seed}/{index}/{sample}" for index, sample in part]
        sequences += policy.generate([ids[index] for index, _ in part], keys, sampling.greedy)
    return [
        Response(
            prompts[index],
            sample,
            messages[index],
            tokens,
            policy.renderer.response_text(tokens.response_ids),
            policy.ends.ended(tokens),
        )
        for (index, sample), tokens in zip(wanted, sequences, strict=True)
    ]


def _prompt_ids(policy: TrainedPolicy, index: int, prompt: Prompt) -> tuple[int, ...]:
    try:
        return policy.prompt_ids(prompt.messages)
    except InputError as error:
        raise InputError(f"prompt {index + 1}: {error}") from error


def write_json_lines(file: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write all records, or none; raise DiskError if that fails."""
    try:
        write_durably(file, (json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    except OSError as error:
        raise DiskError(f"{file}: cannot be written: {error.strerror}") from error
