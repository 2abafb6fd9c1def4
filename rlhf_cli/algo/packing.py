"""Packing: a common prefix of several texts is processed once, and padding is not processed at all.

A causal model's output at a token depends only on that token and those before it. So texts can
share the computation of a common prefix, and its gradients are the sums over these texts: the same
sums as if each text were processed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Packing:
    """B texts of at most L tokens, packed into N tokens that differ in their id or their past."""

    ids: Tensor  # [N]
    positions: Tensor  # [N] in their texts, from 0
    indices: Tensor  # [B, L] of the packed tokens; 0 on padding
    first: Tensor  # [N] flat index in [B, L] of the first copy of each token
    shared: Tensor  # [S] packed tokens that are in several texts, the most frequent ones first
    copies: tuple[Tensor, ...]  # flat indices of the second, third, ... copy of `shared`, as far as tokens have one

    @staticmethod
    def of(texts: Sequence[tuple[int, ...]], device: torch.device) -> Packing:
        """Pack texts by their common prefixes; no text may be empty."""
        width = max(map(len, texts))
        ids: list[int] = []
        positions: list[int] = []
        first: list[int] = []
        repeats: dict[int, list[int]] = {}
        rows = [[0] * width for _ in texts]
        previous: tuple[int, ...] = ()
        path: list[int] = []
        for row in sorted(range(len(texts)), key=lambda index: texts[index]):
            text = texts[row]
            prefix = common_prefix_length(text, previous)
            for column in range(prefix):
                repeats.setdefault(path[column], []).append(row * width + column)
            path = path[:prefix] + list(range(len(ids), len(ids) + len(text) - prefix))
            ids += text[prefix:]
            positions += range(prefix, len(text))
            first += range(row * width + prefix, row * width + len(text))
            rows[row][: len(text)] = path
            previous = text
        shared = sorted(repeats, key=lambda token: -len(repeats[token]))
        most = len(repeats[shared[0]]) if shared else 0
        copies = ([repeats[token][turn] for token in shared if turn < len(repeats[token])] for turn in range(most))
        return Packing(
            ids=_long(ids, device),
            positions=_long(positions, device),
            indices=_long(rows, device),
            first=_long(first, device),
            shared=_long(shared, device),
            copies=tuple(_long(numbers, device) for numbers in copies),
        )

    def unpack(self, packed: Tensor) -> Tensor:
        """Copy values of the packed tokens [N, ...] to all texts: [B, L, ...]."""
        unpacked: Tensor = _Unpack.apply(packed, self)  # type: ignore[no-untyped-call]
        return unpacked

    def pack(self, unpacked: Tensor) -> Tensor:
        """Take values [B, L, ...] at the first copy of each packed token: [N, ...]."""
        packed: Tensor = _Pack.apply(unpacked, self)  # type: ignore[no-untyped-call]
        return packed


def common_prefix_length(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Return the number of tokens in the common prefix of two texts."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _long(numbers: list[Any], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long).to(device)


class _Unpack(torch.autograd.Function):
    """Add up gradients of copies in float32 in a fixed order: torch's sum varies on a GPU."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return packed.index_select(0, packing.indices.flatten()).view(*packing.indices.shape, *packed.shape[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        packing, flat = ctx.packing, gradients[0].flatten(0, 1)
        result = flat.index_select(0, packing.first)
        if packing.copies:
            sums = result.index_select(0, packing.shared).float()
            for indices in packing.copies:
                sums[: len(indices)] += flat.index_select(0, indices)
            result.index_copy_(0, packing.shared, sums.to(result.dtype))
        return result, None


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, unpacked: Tensor, packing: Packing) -> Tensor:
        ctx.packing, ctx.shape = packing, unpacked.shape
        return unpacked.flatten(0, 1).index_select(0, packing.first)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        result = gradients[0].new_zeros((ctx.shape[0] * ctx.shape[1], *ctx.shape[2:]))
        return result.index_copy_(0, ctx.packing.first, gradients[0]).view(ctx.shape), None
