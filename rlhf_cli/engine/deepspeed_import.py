"""DeepSpeed without MLflow: deepspeed.autotuning (0.19.8) imports it where it is installed, a second of every start."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Let a package seem not to be installed while the body imports others; one that is imported already stays."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found nothing better

with _absent("mlflow"):
    import deepspeed
    from deepspeed.accelerator import get_accelerator

__all__ = ["deepspeed", "get_accelerator"]
