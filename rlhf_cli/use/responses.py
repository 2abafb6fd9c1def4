"""Several answers of a policy to every prompt, and what is written down of them."""

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
from rlhf_cli.config.sections import DType
from rlhf_cli.data.chat_template import Message
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.token_batches import chunks
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.system.durable_files import write_durably
from rlhf_cli.use.cli_options import Loading, Sampling, beside
from rlhf_cli.use.reward_scorer import device_of
from rlhf_cli.use.trained_policy import Answer, Policy
from rlhf_cli.use.trained_runs import Role, Trained, find, with_options

_AT_A_TIME = 8  # batches, among which prompts of like length find each other


@dataclass(frozen=True)
class Asked:
    """One answer to one prompt."""

    prompt: Prompt
    place: int  # of the prompt among all
    sample: int  # which one of its answers
    answer: Answer
    messages: list[Message]  # what was answered: with the system prompt that the policy saw

    @property
    def record(self) -> dict[str, Any]:
        """The answer as a JSON object that `rlhf score` reads."""
        return self.record_with({})

    def record_with(self, more: dict[str, Any]) -> dict[str, Any]:
        """Return the record with more that is written of the answer."""
        written = {
            "prompt": plain(self.messages),
            "response": self.answer.text,
            "sample": self.sample,
            "num_tokens": self.answer.num_tokens,
            "ended": self.answer.ended,
            **more,
        }
        return beside(self.prompt.columns, written)


def plain(messages: Sequence[Message]) -> str | list[Message]:
    """Return a conversation as a row's prompt: the text of a user's only message, or the messages."""
    is_plain = [message["role"] for message in messages] == ["user"]
    return messages[0]["content"] if is_plain else [dict(message) for message in messages]


def load_policy(path: str, loading: Loading, sampling: Sampling) -> Policy:
    """Load a policy, with the sampling of its run but for what was given."""
    found = as_asked(find(path, Role.policy), loading)
    return Policy(found, sampling.over(found.rollout), device_of(loading.device))


def as_asked(found: Trained, loading: Loading) -> Trained:
    """Return a policy with the options that were given.

    On a CPU it computes in float32 unless told otherwise: in bfloat16 the batch around a prompt rounds its
    probabilities another way, and of some dozens of draws one turns.
    """
    on_cpu = device_of(loading.device).type == "cpu"
    dtype = loading.dtype or (DType.float32 if on_cpu else None)
    return with_options(found, loading.system_prompt, dtype, loading.trust_remote_code)


def ask(policy: Policy, prompts: Sequence[Prompt], num: int, sampling: Sampling) -> list[Asked]:
    """Return `num` answers to every prompt, those of one prompt together.

    The draws of an answer depend on the seed, the prompt's place and the sample's number alone: two policies draw the
    same numbers. Raises InputError, before any answer, where a prompt leaves no room for one.
    """
    ids = [_ids(policy, place, prompt) for place, prompt in enumerate(prompts)]
    wanted = [(place, sample) for place in range(len(prompts)) for sample in range(num)]
    answers: list[Answer] = []
    parts = chunks(wanted, _AT_A_TIME * policy.rollout.micro_batch_size)
    for part in track(
        parts, f"{policy.name}: answers", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ):
        keys = [f"{sampling.seed}/{place}/{sample}" for place, sample in part]
        answers += policy.answer([ids[place] for place, _ in part], keys, sampling.greedy)
    seen = [policy.renderer.with_system([dict(message) for message in prompt.messages]) for prompt in prompts]
    return [
        Asked(prompts[place], place, sample, answer, seen[place])
        for (place, sample), answer in zip(wanted, answers, strict=True)
    ]


def _ids(policy: Policy, place: int, prompt: Prompt) -> tuple[int, ...]:
    try:
        return policy.prompt_ids(prompt.messages)
    except InputError as error:
        raise InputError(f"prompt {place + 1}: {error}") from error


def exchanges(policy: Policy, asked: Iterable[Asked]) -> list[Exchange]:
    """Return answers as a reward is asked about them: with the system prompt that the policy saw, as in training."""
    return [
        Exchange(policy.renderer.with_system(list(one.prompt.messages)), one.answer.text, one.prompt.columns)
        for one in asked
    ]


def write_lines(file: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, all or none."""
    try:
        write_durably(file, (json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    except OSError as error:
        raise DiskError(f"{file}: cannot be written: {error.strerror}") from error
