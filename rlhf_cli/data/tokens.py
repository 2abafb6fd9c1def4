"""Prompt and response ids, and the padded batches that every model reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from rlhf_cli.algo.masking import length_mask

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sequence:
    """One prompt with one response. The response carries its EOS, if it has one."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    def __len__(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class TokenBatch:
    """Prompts padded on the left, responses on the right, so that responses start in one column. L = P + T."""

    input_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, L] 1 on real tokens
    position_ids: Tensor  # [B, L] 0 on the first real token of a row, whatever its padding
    response_ids: Tensor  # [B, T]
    response_mask: Tensor  # [B, T] bool, 1 on real response tokens
    num_prompt: int  # P

    def model_inputs(self) -> dict[str, Tensor]:
        """What every model's forward takes."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }

    def at_last_token(self, per_token: Tensor) -> Tensor:
        """Pick from [B, L] or [B, L, d] what stands at the last real token of each row: [B] or [B, d]."""
        last = self.num_prompt - 1 + self.response_mask.sum(dim=1)
        return per_token[torch.arange(len(last), device=last.device), last]

    def before_each_response_token(self, per_token: Tensor) -> Tensor:
        """Pick from [B, L] the entries of the tokens before each response token: [B, T]."""
        return per_token[:, self.num_prompt - 1 : -1]


def collate(sequences: list[Sequence], pad_id: int, device: torch.device) -> TokenBatch:
    """Pad sequences into one batch. Masks come from lengths: a real token may well be `pad_id`."""
    prompts = [sequence.prompt_ids for sequence in sequences]
    responses = [sequence.response_ids for sequence in sequences]
    num_prompt, num_response = max(map(len, prompts)), max(map(len, responses))
    rows = [
        [pad_id] * (num_prompt - len(prompt))
        + list(prompt)
        + list(response)
        + [pad_id] * (num_response - len(response))
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    input_ids = torch.tensor(rows, dtype=torch.long)
    prompt_mask = length_mask(torch.tensor(list(map(len, prompts))), num_prompt).flip(1)
    response_mask = length_mask(torch.tensor(list(map(len, responses))), num_response)
    attention_mask = torch.cat([prompt_mask, response_mask], dim=1).long()
    return TokenBatch(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0).to(device),
        response_ids=input_ids[:, num_prompt:].to(device),
        response_mask=response_mask.to(device),
        num_prompt=num_prompt,
    )


@dataclass(frozen=True)
class Size:
    """The room that a row takes in a batch: so many sequences, padded to the longest prompt and response."""

    num_sequences: int
    prompt: int
    response: int

    @staticmethod
    def of(sequence: Sequence) -> Size:
        """Measure one sequence with its prompt apart."""
        return Size(1, len(sequence.prompt_ids), len(sequence.response_ids))

    def joined(self, other: Size) -> Size:
        """Measure the batch of both."""
        return Size(
            self.num_sequences + other.num_sequences,
            max(self.prompt, other.prompt),
            max(self.response, other.response),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of the padded batch."""
        return self.num_sequences * (self.prompt + self.response)


def micro_batches(sizes: list[Size], num_rows: int, num_tokens: int | None) -> list[list[int]]:
    """Group the places 0 .. len(sizes)-1 into forward passes.

    Runs of num_rows, in order; or, with num_tokens, rows of like length, as many as fit in so many tokens once padded
    (a row that is larger has a pass of its own).
    """
    if num_tokens is None:
        return chunks(list(range(len(sizes))), num_rows)
    order = sorted(range(len(sizes)), key=lambda place: (sizes[place].prompt + sizes[place].response, place))
    groups: list[list[int]] = []
    room = Size(0, 0, 0)
    for place in order:
        joined = room.joined(sizes[place])
        if groups and joined.num_tokens <= num_tokens:
            groups[-1].append(place)
            room = joined
        else:
            groups.append([place])
            room = sizes[place]
    return groups


def chunks(items: list[Item], size: int) -> list[list[Item]]:
    """Split a list into runs of `size`, the last one shorter if it must be."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def flatten(lists: list[list[Item]]) -> list[Item]:
    """Join lists into one, in order."""
    return list(chain.from_iterable(lists))


def fingerprint_of(rows: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    """Return a SHA-256 over the token ids of prompts and responses, in their order."""
    digest = hashlib.sha256()
    for prompt_ids, response_ids in rows:
        digest.update(f"{prompt_ids}{response_ids}".encode())
    return digest.hexdigest()
