"""Count the bytes of live tensors on any device, including meta."""

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
    """While this mode is active, count every storage that an operation creates until it is freed.

    Older storages count only after `add`. A view counts as its base, once. Memory that a kernel
    uses within one operation is not seen. kind: returns the kind of a new tensor, under which it is
    counted, or None to ignore it.
    """

    def __init__(self, kind: Kind = lambda _: "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kind = kind
        self._counted: dict[int, tuple[str, int]] = {}  # storage -> kind, bytes
        self._older: set[int] = set()  # storages that existed before
        self.bytes: Counter[str] = Counter()  # alive, by kind
        self.total = 0
        self.peak = 0
        self.at_peak: Counter[str] = Counter()  # `bytes` at the peak

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the tensors that it creates."""
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and (key := _key(leaf)) not in self._older:
                self._older.add(key)
                weakref.finalize(_owner(leaf), self._older.discard, key)
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _key(leaf) not in self._older:
                self.add(leaf)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage unless it is counted already, even if it is older."""
        key, size = _key(tensor), _size(tensor)
        if key in self._counted or not size:
            return
        kind = self._kind(tensor)
        if kind is None:
            return
        self._older.discard(key)
        self._counted[key] = kind, size
        self.bytes[kind] += size
        self.total += size
        if self.total > self.peak:
            self.reset_peak()
        weakref.finalize(_owner(tensor), self._remove, key)

    def reset_peak(self) -> None:
        """Set the peak to what is alive now."""
        self.peak, self.at_peak = self.total, Counter({kind: size for kind, size in self.bytes.items() if size})

    def _remove(self, key: int) -> None:
        kind, size = self._counted.pop(key)
        self.bytes[kind] -= size
        self.total -= size


def _owner(tensor: Tensor) -> Any:
    """Return what lives as long as a tensor's bytes; oneDNN tensors hide their storage."""
    return tensor if tensor.is_mkldnn else tensor.untyped_storage()


def _key(tensor: Tensor) -> int:
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage()._cdata


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size() if tensor.is_mkldnn else tensor.untyped_storage().nbytes()
