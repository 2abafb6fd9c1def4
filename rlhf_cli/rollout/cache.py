"""A key-value cache with room for a whole response, allocated once."""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # mypy skips transformers
    """A layer of a DynamicCache that writes into spare room, where its parent copies all it holds for each token."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room  # tokens
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, H, new tokens, d]; return views of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = self._with_room(key_states), self._with_room(value_states)
        end = self.length + key_states.shape[-2]
        assert end <= self.room
        self.keys[..., self.length : end, :] = key_states
        self.values[..., self.length : end, :] = value_states
        self.length = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def get_seq_length(self) -> int:
        """Return how many tokens are held."""
        return self.length

    def _with_room(self, like: Tensor) -> Tensor:
        return like.new_empty((*like.shape[:-2], self.room, like.shape[-1]))


def roomy_cache(model: PreTrainedModel, room: int) -> DynamicCache:
    """Return a cache for `room` tokens a row; layers of other kinds (sliding windows, linear attention) stay so."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
