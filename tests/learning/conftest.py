"""A process group of one, as the unit tests have it, but given back when the folder is done: there
can be only one.
"""

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
