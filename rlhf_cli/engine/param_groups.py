"""Which parameters an optimizer updates at a time, so that few of their gradients stand in its own type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

TOGETHER = 2**25  # numbers, or one larger parameter


def groups(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Cut parameters into groups of at most TOGETHER numbers, or of one parameter; their order stays."""
    group: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if group and size + parameter.numel() > TOGETHER:
            yield group
            group, size = [], 0
        group.append(parameter)
        size += parameter.numel()
    yield group
