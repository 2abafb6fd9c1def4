"""A key-value cache with spare capacity: allocated once, or on a CPU by blocks of tokens."""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

_CPU_BLOCK = 64  # tokens


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # mypy skips transformers
    """A layer of a DynamicCache with spare capacity; its parent copies all keys for each new token.

    keys and values: [B, H, allocated tokens, d], of which the first `length` are held and the rest
    is 0. It allocates blocks of tokens, up to its capacity.
    """

    def __init__(self, capacity: int, block: int) -> None:
        super().__init__()
        self.capacity = capacity  # tokens
        self.block = block  # tokens
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, H, new tokens, d]; return views of all."""
        end = self.length + key_states.shape[-2]
        assert end <= self.capacity
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        if end > self.keys.shape[-2]:
            self.keys, self.values = self._reallocated(self.keys, end), self._reallocated(self.values, end)
        self.keys[..., self.length : end, :] = key_states
        self.values[..., self.length : end, :] = value_states
        self.length = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def get_seq_length(self) -> int:
        """Return how many tokens are held."""
        return self.length

    def _reallocated(self, held: Tensor, end: int) -> Tensor:
        tokens = min(self.capacity, -(-end // self.block) * self.block)
        larger = held.new_zeros((*held.shape[:-2], tokens, held.shape[-1]))
        larger[..., : self.length, :] = held[..., : self.length, :]
        return larger


def preallocated_cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    """Return a cache for `capacity` tokens per row; sliding windows and linear attention keep their layers.

    On a CPU it grows by blocks, because decoding there multiplies with all allocated keys: PyTorch
    would copy a part of them for the product (models/cpu/decoding.py).
    """
    block = _CPU_BLOCK if model.device.type == "cpu" else capacity
    cache = DynamicCache(config=model.config)
    cache.layers = [
        PreallocatedLayer(capacity, block) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
