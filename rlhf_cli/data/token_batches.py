"""Prompt and response ids, and the padded batches that every model reads."""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from rlhf_cli.algo.masking import length_mask
from rlhf_cli.algo.packing import Packing, num_common

Item = TypeVar("Item")


@dataclass(frozen=True)
class TokenSequence:
    """One prompt with one response. The response carries its EOS, if it has one."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    def __len__(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The response behind the prompt."""
        return self.prompt_ids + self.response_ids


@dataclass(frozen=True)
class EndTokens:
    """The tokens that end a response, and what fills batches."""

    ids: frozenset[int]
    pad_id: int

    def ended(self, sequence: TokenSequence) -> bool:
        """Say whether a response ends in an end token, rather than at max_new_tokens."""
        return sequence.response_ids[-1] in self.ids

    def cut(self, response: list[int]) -> tuple[int, ...]:
        """Drop what follows the first end token."""
        for place, token in enumerate(response):
            if token in self.ids:
                return tuple(response[: place + 1])
        return tuple(response)


@dataclass(frozen=True)
class TokenBatch:
    """Prompts, each with its response behind it, all padding on the right.

    A causal model's real tokens never look at it, so models need neither mask nor positions. N: real response tokens.
    """

    input_ids: Tensor  # [B, L]
    prompt_lengths: Tensor  # [B]
    response_ids: Tensor  # [B, T]
    response_mask: Tensor  # [B, T] bool, 1 on real response tokens
    packing: Packing  # of the real tokens of input_ids

    def before_response_tokens(self) -> dict[str, Tensor]:
        """Return rows and columns [N] in input_ids of the tokens that predict the response tokens, row after row."""
        rows, places = self.response_mask.nonzero(as_tuple=True)
        return {"rows": rows, "columns": self.prompt_lengths[rows] - 1 + places}

    def real_response_ids(self) -> Tensor:
        """Return the real response tokens [N], row after row."""
        return self.response_ids[self.response_mask]

    def per_response_token(self, values: Tensor) -> Tensor:
        """Put the values [N] of real response tokens in their places [B, T], with 0 on padding."""
        zeros = torch.zeros(self.response_mask.shape, dtype=values.dtype, device=values.device)
        return zeros.masked_scatter(self.response_mask, values)

    def at_last_token(self, per_token: Tensor) -> Tensor:
        """Pick from [B, L] or [B, L, d] what stands at the last real token of each row: [B] or [B, d]."""
        last = self.prompt_lengths - 1 + self.response_mask.sum(dim=1)
        return per_token[torch.arange(len(last), device=last.device), last]

    def before_each_response_token(self, per_token: Tensor) -> Tensor:
        """Pick from [B, L] the entries of the tokens before each response token: [B, T], 0 on padding."""
        at = self.before_response_tokens()
        return self.per_response_token(per_token[at["rows"], at["columns"]])


def collate(sequences: list[TokenSequence], pad_id: int, device: torch.device) -> TokenBatch:
    """Pad sequences into one batch. Masks come from lengths: a real token may well be `pad_id`."""
    longest = max(map(len, sequences))
    longest_response = max(len(sequence.response_ids) for sequence in sequences)
    texts = [sequence.ids for sequence in sequences]
    responses = [_padded(sequence.response_ids, longest_response, pad_id) for sequence in sequences]
    response_lengths = torch.tensor([len(sequence.response_ids) for sequence in sequences])
    return TokenBatch(
        input_ids=torch.tensor([_padded(text, longest, pad_id) for text in texts], dtype=torch.long).to(device),
        prompt_lengths=torch.tensor([len(sequence.prompt_ids) for sequence in sequences]).to(device),
        response_ids=torch.tensor(responses, dtype=torch.long).to(device),
        response_mask=length_mask(response_lengths, longest_response).to(device),
        packing=Packing.of(texts, device),
    )


def _padded(ids: tuple[int, ...], size: int, pad_id: int) -> list[int]:
    return [*ids, *[pad_id] * (size - len(ids))]


class SizedRow(Protocol):
    """What rows take of a forward pass."""

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are read."""

    def joined(self, other: Any) -> SizedRow:
        """Return the room of this and another one of its kind together."""


@dataclass(frozen=True)
class Size:
    """The room of rows whose texts are padded to the longest."""

    num_sequences: int
    longest: int

    def joined(self, other: Size) -> Size:
        return Size(self.num_sequences + other.num_sequences, max(self.longest, other.longest))

    @property
    def num_tokens(self) -> int:
        return self.num_sequences * self.longest


@dataclass(frozen=True)
class PackedSize:
    """The room of rows whose texts are packed: what they begin with alike counts once, and nothing is padded."""

    texts: tuple[tuple[int, ...], ...]  # in order
    num_tokens: int

    @staticmethod
    def of(*sequences: TokenSequence) -> PackedSize:
        return PackedSize((), 0).joined(PackedSize(tuple(sequence.ids for sequence in sequences), 0))

    @property
    def longest(self) -> int:
        return max(map(len, self.texts), default=0)

    def joined(self, other: PackedSize) -> PackedSize:
        texts, num_tokens = list(self.texts), self.num_tokens
        for text in other.texts:
            place = bisect(texts, text)
            neighbours = texts[max(0, place - 1) : place + 1]  # of all texts those that begin most like it
            num_tokens += len(text) - max((num_common(text, one) for one in neighbours), default=0)
            texts.insert(place, text)
        return PackedSize(tuple(texts), num_tokens)


def sized_rows(rows: list[tuple[TokenSequence, ...]], packed: bool) -> list[SizedRow]:
    """Measure rows of one or more texts each; packed: whether they are read packed."""
    if packed:
        return [PackedSize.of(*row) for row in rows]
    return [Size(len(row), max(map(len, row))) for row in rows]


def micro_batches(rows: list[SizedRow], num_rows: int, num_tokens: int | None) -> list[list[int]]:
    """Group the places 0 .. len(rows)-1, from the shortest rows to the longest, into forward passes.

    Runs of num_rows; or, with num_tokens, as many as have room in so many tokens (a row that is larger has a pass of
    its own).
    """
    order = sorted(range(len(rows)), key=lambda place: (rows[place].longest, place))
    if num_tokens is None:
        return chunks(order, num_rows)
    groups = [order[:1]]
    room = rows[order[0]]
    for place in order[1:]:
        joined = room.joined(rows[place])
        if joined.num_tokens <= num_tokens:
            groups[-1].append(place)
            room = joined
        else:
            groups.append([place])
            room = rows[place]
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
