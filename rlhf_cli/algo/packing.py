"""Texts as a tree: what several of them begin with is held once, and padding not at all.

What a causal model says at a token follows from that token and those before it. So texts with the same beginning share
the work on it, and gradients of all of them meet there: the same sums as reading each text whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Packing:
    """B texts of at most L tokens, in which N tokens differ in themselves or in what stands before them."""

    ids: Tensor  # [N]
    positions: Tensor  # [N] in their texts, from 0
    places: Tensor  # [B, L] which of the N stands there; 0 on padding
    first: Tensor  # [N] the flat place in [B, L] where each stands first
    shared: Tensor  # [S] those of the N that stand in several texts, the most frequent first
    copies: tuple[Tensor, ...]  # flat places of the second, third, ... copy of the first so many of `shared`

    @staticmethod
    def of(texts: Sequence[tuple[int, ...]], device: torch.device) -> Packing:
        """Find what texts, none of them empty, begin with alike."""
        width = max(map(len, texts))
        ids: list[int] = []
        positions: list[int] = []
        first: list[int] = []
        again: dict[int, list[int]] = {}
        rows = [[0] * width for _ in texts]
        before: tuple[int, ...] = ()
        path: list[int] = []
        for row in sorted(range(len(texts)), key=lambda place: texts[place]):
            text = texts[row]
            num_alike = num_common(text, before)
            for column in range(num_alike):
                again.setdefault(path[column], []).append(row * width + column)
            path = path[:num_alike] + list(range(len(ids), len(ids) + len(text) - num_alike))
            ids += text[num_alike:]
            positions += range(num_alike, len(text))
            first += range(row * width + num_alike, row * width + len(text))
            rows[row][: len(text)] = path
            before = text
        shared = sorted(again, key=lambda token: -len(again[token]))
        most = len(again[shared[0]]) if shared else 0
        copies = ([again[token][turn] for token in shared if turn < len(again[token])] for turn in range(most))
        return Packing(
            ids=_places(ids, device),
            positions=_places(positions, device),
            places=_places(rows, device),
            first=_places(first, device),
            shared=_places(shared, device),
            copies=tuple(_places(numbers, device) for numbers in copies),
        )

    def spread(self, packed: Tensor) -> Tensor:
        """Put what belongs to each of the N tokens, [N, ...], where it stands in the texts: [B, L, ...]."""
        spread: Tensor = _Spread.apply(packed, self)  # type: ignore[no-untyped-call]
        return spread

    def pick(self, spread: Tensor) -> Tensor:
        """Take from [B, L, ...] what stands where each of the N tokens stands first: [N, ...]."""
        packed: Tensor = _Pick.apply(spread, self)  # type: ignore[no-untyped-call]
        return packed


def num_common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Return how many tokens two texts begin with alike."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _places(numbers: list[Any], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long).to(device)


class _Spread(torch.autograd.Function):
    """Gradients of all copies of a token are added in float32, in one order: torch's own sum varies on a GPU."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return packed.index_select(0, packing.places.flatten()).view(*packing.places.shape, *packed.shape[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        packing, flat = ctx.packing, gradients[0].flatten(0, 1)
        result = flat.index_select(0, packing.first)
        if packing.copies:
            sums = result.index_select(0, packing.shared).float()
            for places in packing.copies:
                sums[: len(places)] += flat.index_select(0, places)
            result.index_copy_(0, packing.shared, sums.to(result.dtype))
        return result, None


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spread: Tensor, packing: Packing) -> Tensor:
        ctx.packing, ctx.shape = packing, spread.shape
        return spread.flatten(0, 1).index_select(0, packing.first)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        result = gradients[0].new_zeros((ctx.shape[0] * ctx.shape[1], *ctx.shape[2:]))
        return result.index_copy_(0, ctx.packing.first, gradients[0]).view(ctx.shape), None
