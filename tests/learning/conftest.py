"""A process group of one rank, as for the unit tests, but closed at the end of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.unit.conftest import one_rank  # noqa: F401


@pytest.fixture(scope="package")
def _process_group() -> Iterator[None]:
    if torch.distributed.is_initialized():  # by the unit tests, which keep theirs to the end of the session
        yield
        return
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
