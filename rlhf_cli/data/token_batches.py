"""Prompt and response ids, padded batches, and micro-batches of limited size."""

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
from rlhf_cli.algo.packing import Packing, common_prefix_length

Item = TypeVar("Item")


@dataclass(frozen=True)
class TokenSequence:
    """One prompt with one response, which includes its EOS if it has one."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt, followed by the response."""
        return self.prompt_ids + self.response_ids


@dataclass(frozen=True)
class EndTokens:
    """The tokens that end a response, and the token that pads batches."""

    ids: frozenset[int]
    pad_id: int

    def ended(self, sequence: TokenSequence) -> bool:
        """Whether a response ends in an end token, rather than at max_new_tokens."""
        return sequence.response_ids[-1] in self.ids

    def cut(self, response: list[int]) -> tuple[int, ...]:
        """Return a response up to its first end token."""
        end = next((index for index, token in enumerate(response, 1) if token in self.ids), len(response))
        return tuple(response[:end])


@dataclass(frozen=True)
class TokenBatch:
    """Prompts, each followed by its response. All padding is on the right.

    The real tokens of a causal model never attend to padding on their right, so models need neither
    a mask nor positions. N is the number of real response tokens.
    """

    input_ids: Tensor  # [B, L]
    prompt_lengths: Tensor  # [B]
    response_ids: Tensor  # [B, T]
    response_mask: Tensor  # [B, T] bool, True for real response tokens
    packing: Packing  # of the real tokens of input_ids

    def before_response_tokens(self) -> dict[str, Tensor]:
        """Return the rows and columns [N] of input_ids that predict the response tokens."""
        rows, positions = self.response_mask.nonzero(as_tuple=True)
        return {"rows": rows, "columns": self.prompt_lengths[rows] - 1 + positions}

    def real_response_ids(self) -> Tensor:
        """Return the real response tokens [N], row by row."""
        return self.response_ids[self.response_mask]

    def per_response_token(self, values: Tensor) -> Tensor:
        """Arrange the values [N] of real response tokens as [B, T], with 0 for padding."""
        zeros = torch.zeros(self.response_mask.shape, dtype=values.dtype, device=values.device)
        return zeros.masked_scatter(self.response_mask, values)

    def at_last_token(self, per_token: Tensor) -> Tensor:
        """Select from [B, L] or [B, L, d] the last real token of each row: [B] or [B, d]."""
        last = self.prompt_lengths - 1 + self.response_mask.sum(dim=1)
        return per_token[torch.arange(len(last), device=last.device), last]

    def before_each_response_token(self, per_token: Tensor) -> Tensor:
        """Select from [B, L] the token before each response token: [B, T], 0 for padding."""
        at = self.before_response_tokens()
        return self.per_response_token(per_token[at["rows"], at["columns"]])


def collate(sequences: list[TokenSequence], pad_id: int, device: torch.device) -> TokenBatch:
    """Pad sequences. Masks come from lengths, because a real token may be `pad_id`."""
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
    """How much of a forward pass one or more rows take."""

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads, padding included."""

    def joined(self, other: Any) -> SizedRow:
        """Return the size of this and another one of the same class in one pass."""


@dataclass(frozen=True)
class Size:
    """The size of rows whose texts are padded to the longest one."""

    num_sequences: int
    longest: int

    def joined(self, other: Size) -> Size:
        return Size(self.num_sequences + other.num_sequences, max(self.longest, other.longest))

    @property
    def num_tokens(self) -> int:
        return self.num_sequences * self.longest


@dataclass(frozen=True)
class PackedSize:
    """The size of rows whose texts are packed: shared prefixes count once, without padding."""

    texts: tuple[tuple[int, ...], ...]  # in ascending order
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
            index = bisect(texts, text)
            neighbours = texts[max(0, index - 1) : index + 1]  # share the longest prefixes
            num_tokens += len(text) - max((common_prefix_length(text, one) for one in neighbours), default=0)
            texts.insert(index, text)
        return PackedSize(tuple(texts), num_tokens)


def sized_rows(rows: list[tuple[TokenSequence, ...]], packed: bool) -> list[SizedRow]:
    """Measure rows of one or more texts each; packed: whether the model reads them packed."""
    if packed:
        return [PackedSize.of(*row) for row in rows]
    return [Size(len(row), max(map(len, row))) for row in rows]


def micro_batches(rows: list[SizedRow], num_rows: int, num_tokens: int | None) -> list[list[int]]:
    """Group the row indices into forward passes, from the shortest rows to the longest.

    A pass has num_rows rows or, with num_tokens, as many as fit into this number of tokens. A row
    with more tokens has a pass of its own.
    """
    order = sorted(range(len(rows)), key=lambda index: (rows[index].longest, index))
    if num_tokens is None:
        return chunks(order, num_rows)
    groups = [order[:1]]
    size = rows[order[0]]
    for index in order[1:]:
        joined = size.joined(rows[index])
        if joined.num_tokens <= num_tokens:
            groups[-1].append(index)
            size = joined
        else:
            groups.append([index])
            size = rows[index]
    return groups


def chunks(items: list[Item], size: int) -> list[list[Item]]:
    """Split a list into parts of `size`; the last one may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def flatten(lists: list[list[Item]]) -> list[Item]:
    """Concatenate lists."""
    return list(chain.from_iterable(lists))


def fingerprint_of(rows: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    """Return a SHA-256 of the token ids of prompts and responses, in their order."""
    digest = hashlib.sha256()
    for prompt_ids, response_ids in rows:
        digest.update(f"{prompt_ids}{response_ids}".encode())
    return digest.hexdigest()
