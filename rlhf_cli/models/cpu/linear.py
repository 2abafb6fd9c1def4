"""bfloat16 linear layers on a CPU whose weights are reordered once instead of in every product.

oneDNN needs weights in its own memory order. PyTorch (2.13) reorders them in every product, which
for the few rows of a decoding step takes longer than the product itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]


@contextmanager
def reordered_weights(model: nn.Module, num_rows: int, excluded: Collection[nn.Module] = ()) -> Iterator[None]:
    """Run a model's bfloat16 linear layers with reordered copies of their weights.

    num_rows: rows of most products. Inside, weights must not change and gradients are not available.
    """
    changed, skipped = [], set(excluded)
    try:
        for layer in model.modules():
            if type(layer) is nn.Linear and layer not in skipped and _can_reorder(layer.weight):
                layer.forward = product([layer], num_rows)  # type: ignore[method-assign, assignment]
                changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward


def supports_reordering(dtype: torch.dtype) -> bool:
    """Return whether this CPU multiplies with reordered weights of this type."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return dtype is torch.bfloat16 and available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _can_reorder(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and supports_reordering(weight.dtype)


def product(layers: Sequence[nn.Linear], num_rows: int) -> Product:
    """Return a function from rows [..., in] to the concatenated outputs of all layers, [..., out]."""
    if not _can_reorder(layers[0].weight):
        return layers[0] if len(layers) == 1 else lambda rows: torch.cat([layer(rows) for layer in layers], dim=-1)
    # PyTorch's own compiler uses these private functions; PyTorch is pinned, and a test fails if they go
    weights = [layer.weight.detach() for layer in layers]
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    bias = torch.cat(biases) if biases else None
    weight = torch.ops.mkldnn._reorder_linear_weight(weights[0] if len(weights) == 1 else torch.cat(weights), num_rows)
    linear = torch.ops.mkldnn._linear_pointwise
    return lambda rows: cast(Tensor, linear(rows, weight, bias, "none", [], ""))
