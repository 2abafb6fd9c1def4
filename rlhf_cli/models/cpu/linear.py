"""bfloat16 linear layers on a CPU whose weights are laid out once, not again for each product.

oneDNN multiplies with weights in an order of its own. torch (2.13) has it put them in that order in every product,
which for the few rows of a decoding step takes longer than the product itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]


@contextmanager
def laid_out(model: nn.Module, num_rows: int, but: Collection[nn.Module] = ()) -> Iterator[None]:
    """Run a model's bfloat16 linear layers, but some, with such weights; num_rows: what most products have.

    The body must not change weights, nor need gradients. Elsewhere than on a CPU that has such products, nothing
    changes.
    """
    changed, left = [], set(but)
    try:
        for layer in model.modules():
            if type(layer) is nn.Linear and layer not in left and _can_be_laid_out(layer.weight):
                layer.forward = product([layer], num_rows)  # type: ignore[method-assign, assignment]
                changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.forward


def lays_out() -> bool:
    """Say whether this CPU has such products."""
    return torch.backends.mkldnn.is_available() and bool(  # type: ignore[no-untyped-call]
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _can_be_laid_out(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and lays_out()


def product(layers: Sequence[nn.Linear], num_rows: int) -> Product:
    """Return what multiplies rows [..., in] with all of some layers, side by side: [..., out of all of them]."""
    if not _can_be_laid_out(layers[0].weight):
        return layers[0] if len(layers) == 1 else lambda rows: torch.cat([layer(rows) for layer in layers], dim=-1)
    # the functions that torch's own compiler calls; torch is pinned, and a test says where they are gone
    weights = [layer.weight.detach() for layer in layers]
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    bias = torch.cat(biases) if biases else None
    weight = torch.ops.mkldnn._reorder_linear_weight(weights[0] if len(weights) == 1 else torch.cat(weights), num_rows)
    linear = torch.ops.mkldnn._linear_pointwise
    return lambda rows: cast(Tensor, linear(rows, weight, bias, "none", [], ""))
