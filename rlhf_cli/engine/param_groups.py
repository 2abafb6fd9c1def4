"""Groups of parameters that are updated together, so that few gradients exist in the optimizer's dtype at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

GROUP_SIZE = 2**25  # elements; a larger parameter is a group of its own


def parameter_groups(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Split parameters, in their order, into groups of at most GROUP_SIZE elements or of one parameter."""
    group: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if group and size + parameter.numel() > GROUP_SIZE:
            yield group
            group, size = [], 0
        group.append(parameter)
        size += parameter.numel()
    yield group
