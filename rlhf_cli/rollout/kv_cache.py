"""A key-value cache with room for what comes: allocated once, or on a CPU some tokens at a time."""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

_CPU_BLOCK = 64  # tokens


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # mypy skips transformers
    """A layer of a DynamicCache that writes into spare room, where its parent copies all it holds for each token.

    keys and values are [B, H, tokens, d], whole blocks of tokens or all the room, of which the first `length` are
    held and the rest is 0.
    """

    def __init__(self, room: int, block: int) -> None:
        super().__init__()
        self.room = room  # tokens
        self.block = block  # tokens by which it grows
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, H, new tokens, d]; return views of all."""
        end = self.length + key_states.shape[-2]
        assert end <= self.room
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        if end > self.keys.shape[-2]:
            self.keys, self.values = self._with_room(self.keys, end), self._with_room(self.values, end)
        self.keys[..., self.length : end, :] = key_states
        self.values[..., self.length : end, :] = value_states
        self.length = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def get_seq_length(self) -> int:
        """Return how many tokens are held."""
        return self.length

    def _with_room(self, held: Tensor, end: int) -> Tensor:
        tokens = min(self.room, -(-end // self.block) * self.block)
        roomy = held.new_zeros((*held.shape[:-2], tokens, held.shape[-1]))
        roomy[..., : self.length, :] = held[..., : self.length, :]
        return roomy


def growing_cache(model: PreTrainedModel, room: int) -> DynamicCache:
    """Return a cache for `room` tokens a row; layers of other kinds (sliding windows, linear attention) stay so.

    On a CPU it grows by blocks: decoding there takes all keys that are allocated, not a part of them, which torch
    would copy for its product (models/cpu/decoding.py).
    """
    block = _CPU_BLOCK if model.device.type == "cpu" else room
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer(room, block) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
