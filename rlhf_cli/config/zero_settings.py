"""The keys of `deepspeed.zero_optimization` that decide where memory goes, with DeepSpeed's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_cli.config.errors import InputError

REDUCE_BUCKET = 50_000_000  # gradients that wait to be reduced together; DeepSpeed's own 5e8 are 1 GB a model


def with_weights_on_host(deepspeed: dict[str, Any]) -> dict[str, Any]:
    """Return DeepSpeed's section with weights in host memory."""
    zero = deepspeed.get("zero_optimization", {})
    offload = zero.get("offload_param") or {"device": "cpu", "pin_memory": False}
    return {**deepspeed, "zero_optimization": {"stage": 3, **zero, "offload_param": offload}}


@dataclass(frozen=True)
class ZeroSettings:
    """Numbers are elements, not bytes. Defaults: deepspeed/runtime/zero/config.py (0.19.8), but for the bucket's."""

    offload_param: bool = False
    offload_optimizer: bool = False
    float32_gradients: bool = False  # that micro-batches add up in: data_types.grad_accum_dtype
    reduce_bucket_size: int = REDUCE_BUCKET
    sub_group_size: int = 1_000_000_000
    stage3_prefetch_bucket_size: int = 50_000_000
    stage3_param_persistence_threshold: int = 100_000
    stage3_max_live_parameters: int = 1_000_000_000

    @staticmethod
    def of(deepspeed: dict[str, Any]) -> ZeroSettings:
        """Read them from the section that is handed to DeepSpeed."""
        zero = deepspeed.get("zero_optimization", {})
        given: dict[str, Any] = {key: _number(key, zero[key]) for key in _NUMBERS if key in zero}
        for key in ("offload_param", "offload_optimizer"):
            given[key] = (zero.get(key) or {}).get("device", "none") != "none"
        given["float32_gradients"] = (deepspeed.get("data_types") or {}).get("grad_accum_dtype") == "fp32"
        return ZeroSettings(**given)

    @property
    def offloads(self) -> bool:
        """Whether anything is kept in host memory."""
        return self.offload_param or self.offload_optimizer


def _number(key: str, value: Any) -> int:
    try:
        return int(float(value))
    except (TypeError, ValueError):
        raise InputError(f"deepspeed.zero_optimization.{key} must be a number of elements, got {value}") from None


_NUMBERS = (
    "reduce_bucket_size",
    "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
)
