"""The keys of `deepspeed.zero_optimization` that determine memory use, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_cli.config.errors import InputError

REDUCE_BUCKET = 50_000_000  # gradients reduced together; DeepSpeed's default of 5e8 takes 1 GB a model


def with_weights_on_host(deepspeed: dict[str, Any]) -> dict[str, Any]:
    """Return DeepSpeed's section with the weights in CPU memory."""
    zero = deepspeed.get("zero_optimization", {})
    offload = zero.get("offload_param") or {"device": "cpu", "pin_memory": False}
    return {**deepspeed, "zero_optimization": {"stage": 3, **zero, "offload_param": offload}}


@dataclass(frozen=True)
class ZeroSettings:
    """Sizes are in elements, not bytes.

    Defaults are those of deepspeed/runtime/zero/config.py (0.19.8), except for the bucket.
    """

    offload_param: bool = False
    offload_optimizer: bool = False
    float32_gradients: bool = False  # type in which micro-batches accumulate: data_types.grad_accum_dtype
    reduce_bucket_size: int = REDUCE_BUCKET
    sub_group_size: int = 1_000_000_000
    stage3_prefetch_bucket_size: int = 50_000_000
    stage3_param_persistence_threshold: int = 100_000
    stage3_max_live_parameters: int = 1_000_000_000

    @staticmethod
    def of(deepspeed: dict[str, Any]) -> ZeroSettings:
        """Read the settings from DeepSpeed's section."""
        zero = deepspeed.get("zero_optimization", {})
        sizes = [key for key, default in vars(ZeroSettings()).items() if not isinstance(default, bool)]
        given: dict[str, Any] = {key: _num_elements(key, zero[key]) for key in sizes if key in zero}
        for key in ("offload_param", "offload_optimizer"):
            given[key] = (zero.get(key) or {}).get("device", "none") != "none"
        given["float32_gradients"] = (deepspeed.get("data_types") or {}).get("grad_accum_dtype") == "fp32"
        return ZeroSettings(**given)

    @property
    def offloads(self) -> bool:
        """Whether weights or optimizer states are in CPU memory."""
        return self.offload_param or self.offload_optimizer


def _num_elements(key: str, value: Any) -> int:
    try:
        return int(float(value))
    except (TypeError, ValueError):
        raise InputError(f"deepspeed.zero_optimization.{key} must be a number of elements, got {value}") from None
