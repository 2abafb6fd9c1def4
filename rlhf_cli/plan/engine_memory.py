"""What the engines hold of a model: plain PyTorch or DeepSpeed ZeRO-3.

The ZeRO-3 figures follow deepspeed/runtime/zero/stage3.py (0.19.8): `_create_fp32_partitions`,
`initialize_optimizer_states`, `_setup_for_real_optimizer`, `_prepare_fp32_grad_for_sub_group`;
those of the collectives follow runtime/comm/coalesced_collectives.py. docs/memory.md explains them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_cli.config.sections import OptimConfig
from rlhf_cli.config.zero_settings import ZeroSettings
from rlhf_cli.engine import param_groups
from rlhf_cli.engine.adam_state import EMA_BYTES, MOMENTS, element_bytes, saved_bytes
from rlhf_cli.plan.architecture import Architecture, layer_size, parameter_sizes
from rlhf_cli.plan.memory_map import Item

_FLOAT32 = 4


@dataclass(frozen=True)
class Sharding:
    """How weights are distributed: sharded by ZeRO-3, or complete in plain PyTorch."""

    ranks: int
    zero: ZeroSettings
    on_gpu: bool  # without a GPU, offloaded tensors are on the device anyway and are not copied to it

    @property
    def uses_zero(self) -> bool:
        """Whether DeepSpeed holds the models: with several ranks, or with offloading."""
        return self.ranks > 1 or self.zero.offloads


@dataclass(frozen=True)
class EngineMemory:
    """The memory of one model in its engine; optim: of a trained model."""

    role: str
    architecture: Architecture
    sharding: Sharding
    optim: OptimConfig | None = None
    ema: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each parameter; tied parameters count once."""
        return parameter_sizes(self.architecture)

    @property
    def weights(self) -> int:
        """Number of elements of all parameters."""
        return sum(self.sizes)

    @property
    def shard(self) -> int:
        """Number of elements on this rank; each parameter is padded to a multiple of the ranks."""
        return sum(-(-size // self.sharding.ranks) for size in self.sizes) if self.sharding.uses_zero else self.weights

    @property
    def full_bytes(self) -> int:
        """Bytes of the full model in its training type."""
        return self.weights * self._weight_bytes

    @property
    def _weight_bytes(self) -> int:
        return self.architecture.dtype.itemsize

    @property
    def _state_bytes(self) -> int:
        assert self.optim is not None
        return element_bytes(self.optim)

    @property
    def _gradient_bytes(self) -> int:
        """Bytes of an element of ZeRO-3's summed gradients."""
        return _FLOAT32 if self.sharding.zero.float32_gradients else self._weight_bytes

    def _weights(self) -> Item:
        return self._item("weights", self.shard * self._weight_bytes)

    def resident(self) -> list[Item]:
        """Return what stays on the device all the time, from the first update on."""
        zero = self.sharding.zero
        items = [] if zero.offload_param else [self._weights()]
        if self.optim is None:
            return items
        if not zero.offload_optimizer:
            items += self._states()
        if self.sharding.uses_zero:
            items.append(self._item("gradient bucket", zero.reduce_bucket_size * self._weight_bytes))
        return items

    def on_host(self) -> list[Item]:
        """Return what stays in host memory all the time."""
        zero = self.sharding.zero
        items = [self._weights()] if zero.offload_param else []
        if self.optim is not None and zero.offload_optimizer:
            items += [*self._states(), self._item("gradients for the optimizer", self.shard * _FLOAT32)]
        return items

    def _states(self) -> list[Item]:
        items = []
        # ZeRO-3 copies weights of the optimizer's own type too: it compares a torch.device with a
        # string, which are never equal (0.19.8, `_create_fp32_partitions`).
        if self.sharding.uses_zero or self._state_bytes != self._weight_bytes:
            items.append(self._item("master weights", self.shard * self._state_bytes))
        items.append(self._item("optimizer states", len(MOMENTS) * self.shard * self._state_bytes))
        if self.ema:
            items.append(self._item("moving average", self.shard * EMA_BYTES))
        if self.sharding.uses_zero:
            items.append(self._item("gradients", self.shard * self._gradient_bytes))
        return items

    def gathered(self, hold: bool) -> list[Item]:
        """Return the weights gathered while the model runs: all (hold) or those of some layers."""
        zero = self.sharding.zero
        is_copied = zero.offload_param and self.sharding.on_gpu
        if not self.sharding.uses_zero or (self.sharding.ranks == 1 and not is_copied):
            return []
        if hold:
            sent = self.shard * self._weight_bytes if is_copied and self.sharding.ranks > 1 else 0
            return [self._item("gathered weights", self.full_bytes + sent)]
        live = min(self.weights, zero.stage3_max_live_parameters + zero.stage3_prefetch_bucket_size)
        return [self._item("gathered layers", live * self._weight_bytes)]

    def gradients(self, num_passes: int) -> list[Item]:
        """Return plain PyTorch's gradients after some micro-batches; ZeRO-3's are resident."""
        if self.sharding.uses_zero or num_passes == 0:
            return []
        return [self._item("gradients", self.weights * self._summed_bytes(num_passes))]

    def _summed_bytes(self, num_passes: int) -> int:
        """Bytes of an element of plain PyTorch's gradients after some micro-batches."""
        return self._weight_bytes if num_passes == 1 else _FLOAT32

    def layer_gradients(self) -> list[Item]:
        """Return a full layer's gradients, which ZeRO-3 keeps until backward leaves the layer."""
        if not self.sharding.uses_zero:
            return []
        return [self._item("gradients of a layer", layer_size(self.architecture) * self._weight_bytes)]

    def reduction(self) -> list[Item]:
        """Return what reducing a bucket of gradients needs for a moment."""
        if not self.sharding.uses_zero or self.sharding.ranks == 1:
            return []
        elements = min(self.weights, max(self.sharding.zero.reduce_bucket_size, *self.sizes))
        return [self._item("gradients being reduced", elements * self._weight_bytes)]

    def step(self, num_passes: int) -> list[Item]:
        """Return what the optimizer step needs for a moment: gradients in the type of the masters.

        num_passes: micro-batches of the update. Plain PyTorch frees each gradient once it is
        converted.
        """
        if self.sharding.uses_zero:
            if self.sharding.zero.offload_optimizer:
                return []
            converted = self._state_bytes if self._state_bytes != self._gradient_bytes else 0
            return [self._item("gradients for the optimizer", self._group * (self._gradient_bytes + converted))]
        before, after = self._summed_bytes(num_passes), self._state_bytes
        if before == after:
            return []
        one = max(self.sizes) * after  # a parameter, in addition to its old gradient
        group = min(self.weights, max(param_groups.GROUP_SIZE, *self.sizes)) * (after - before)
        return [self._item("gradients for the optimizer", max(group, one))]

    def start(self) -> list[Item]:
        """Return what is on the device while the engine starts; ZeRO-3 then copies some masters."""
        if not self.sharding.uses_zero:
            return [self._weights()]
        items = [item for item in self.resident() if item.what in ("weights", "master weights")]
        if self.optim is None or self.sharding.zero.offload_optimizer or self._state_bytes == self._weight_bytes:
            return items
        return [*items, self._item("master weights being copied", self._group * self._state_bytes)]

    @property
    def _group(self) -> int:
        """Most elements that ZeRO-3's optimizer updates at once; a parameter is not split."""
        return min(self.shard, self.sharding.zero.sub_group_size + max(self.sizes) // self.sharding.ranks)

    def largest_gathered(self) -> list[Item]:
        """Return the largest parameter, gathered for an export."""
        if not self.sharding.uses_zero or self.sharding.ranks == 1:
            return []
        return [self._item("gathered parameter", max(self.sizes) * self._weight_bytes)]

    @property
    def saved(self) -> int:
        """Bytes of its part of a checkpoint, over all ranks."""
        return 0 if self.optim is None else self.weights * saved_bytes(self.optim, self.ema)

    @property
    def exported(self) -> int:
        """Bytes of the exported model and of its moving average, if there is one."""
        return self.full_bytes * (1 + self.ema)

    def _item(self, what: str, size: int) -> Item:
        return Item(self.role, what, size)
