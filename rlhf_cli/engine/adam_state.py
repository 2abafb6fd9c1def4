"""The state that AdamW keeps for each weight: one layout for the engines and the memory plan, without DeepSpeed."""

from __future__ import annotations

from rlhf_cli.config.sections import DType, OptimConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
EMA_BYTES = 4  # of each weight in the moving average: float32


def element_bytes(optim: OptimConfig) -> int:
    """Return the size of one element of the master weights and of each moment."""
    return 2 if optim.state_dtype is DType.bfloat16 else 4


def saved_bytes(optim: OptimConfig, has_ema: bool) -> int:
    """Return the bytes per weight in a checkpoint: master weights, both moments and the moving average."""
    return (1 + len(MOMENTS)) * element_bytes(optim) + EMA_BYTES * has_ema
