"""Creates the engine for a model: plain PyTorch if there is nothing to shard, otherwise DeepSpeed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlhf_cli.config.sections import OptimConfig
from rlhf_cli.config.zero_settings import ZeroSettings
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import FrozenEngine, TrainEngine
from rlhf_cli.engine.plain import PlainFrozen, PlainTrain
from rlhf_cli.engine.zero3 import ZeroFrozen, ZeroTrain, check_keys


def needs_deepspeed(deepspeed: dict[str, Any]) -> bool:
    """Return whether DeepSpeed is needed: with several ranks, or to offload to CPU memory."""
    return distributed.world_size() > 1 or ZeroSettings.of(deepspeed).offloads


def frozen_engine(module: nn.Module, dtype: torch.dtype, deepspeed: dict[str, Any]) -> FrozenEngine:
    """Wrap a model that is not trained."""
    if needs_deepspeed(deepspeed):
        return ZeroFrozen(module, dtype, deepspeed)
    check_keys(deepspeed)
    return PlainFrozen(module)


def train_engine(
    module: nn.Module,
    dtype: torch.dtype,
    optim: OptimConfig,
    num_updates: int,
    deepspeed: dict[str, Any],
    ema_decay: float | None = None,
) -> TrainEngine:
    """Wrap a model that is trained; for the arguments, see TrainEngine."""
    if needs_deepspeed(deepspeed):
        return ZeroTrain(module, dtype, optim, num_updates, deepspeed, ema_decay)
    check_keys(deepspeed)
    return PlainTrain(module, optim, num_updates, ema_decay)
