"""Imports DeepSpeed without MLflow: deepspeed.autotuning (0.19.8) imports it if installed, which takes a second."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Make imports of a package fail while the body runs, unless it is imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed warns that it found no accelerator

with _hidden("mlflow"):
    import deepspeed
    from deepspeed.accelerator import get_accelerator

__all__ = ["deepspeed", "get_accelerator"]
