"""Counts the bytes of tensors that are alive, whatever device they are on, meta among them."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Kind = Callable[[Tensor], str | None]


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own is
    """While it is entered, every storage that an operation makes counts from then on until nobody holds it.

    Storages that were there before do not count, but by `add`. Views count once, with what they are views of. What a
    kernel needs for itself within one operation is not seen. kind: names the kind of a new tensor, by which the bytes
    at the peak are told apart; None: it does not count.
    """

    def __init__(self, kind: Kind = lambda _: "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kind = kind
        self._held: dict[int, tuple[str, int]] = {}  # storage -> kind, bytes
        self._older: set[int] = set()  # storages that are not ours to count
        self.bytes: Counter[str] = Counter()  # alive, by kind
        self.total = 0
        self.peak = 0
        self.at_peak: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it makes."""
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._leave_out(leaf)
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _key(leaf) not in self._older:
                self.add(leaf)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is counted already; also one that was there before."""
        key, size = _key(tensor), _size(tensor)
        if key in self._held or not size:
            return
        kind = self._kind(tensor)
        if kind is None:
            return
        self._older.discard(key)
        self._held[key] = kind, size
        self.bytes[kind] += size
        self.total += size
        if self.total > self.peak:
            self.reset_peak()
        weakref.finalize(_owner(tensor), self._gone, key)

    def reset_peak(self) -> None:
        """Let the peak be what is alive now."""
        self.peak, self.at_peak = self.total, {kind: size for kind, size in self.bytes.items() if size}

    def _leave_out(self, tensor: Tensor) -> None:
        key = _key(tensor)
        if key not in self._older:
            self._older.add(key)
            weakref.finalize(_owner(tensor), self._older.discard, key)

    def _gone(self, key: int) -> None:
        kind, size = self._held.pop(key)
        self.bytes[kind] -= size
        self.total -= size


def _owner(tensor: Tensor) -> Any:
    """What lives as long as a tensor's bytes: its storage; one in a layout of oneDNN's has none that can be seen."""
    return tensor if tensor.is_mkldnn else tensor.untyped_storage()


def _key(tensor: Tensor) -> int:
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage()._cdata


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size() if tensor.is_mkldnn else tensor.untyped_storage().nbytes()
