"""What the engines hold of a model: plain PyTorch, or DeepSpeed ZeRO-3.

The ZeRO-3 figures follow deepspeed/runtime/zero/stage3.py (0.19.8): `_create_fp32_partitions`,
`initialize_optimizer_states`, `_setup_for_real_optimizer`, `_prepare_fp32_grad_for_sub_group`; those of the collectives
runtime/comm/coalesced_collectives.py. docs/memory.md has them in words.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_cli.config.sections import DType, OptimConfig
from rlhf_cli.config.zero_settings import ZeroSettings
from rlhf_cli.engine import param_groups as groups
from rlhf_cli.plan.architecture import Architecture, layer_size, parameter_sizes
from rlhf_cli.plan.memory_map import Item

_FLOAT32 = 4


@dataclass(frozen=True)
class Sharding:
    """How weights are spread: over `ranks` by ZeRO-3, or whole in plain PyTorch."""

    ranks: int
    zero: ZeroSettings
    on_gpu: bool  # else what is offloaded is on the device all the same, and is not copied to get there

    @property
    def uses_zero(self) -> bool:
        """Whether DeepSpeed holds the models: on several ranks, or where something is offloaded."""
        return self.ranks > 1 or self.zero.offloads


@dataclass(frozen=True)
class Engine:
    """One model in its engine; optim: of a model that is trained."""

    role: str
    architecture: Architecture
    sharding: Sharding
    optim: OptimConfig | None = None
    ema: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each parameter; what is tied counts once."""
        return parameter_sizes(self.architecture)

    @property
    def weights(self) -> int:
        """Elements of all parameters."""
        return sum(self.sizes)

    @property
    def whole(self) -> int:
        """Bytes of the whole model in its training type."""
        return self.weights * self._each

    @property
    def _each(self) -> int:
        return self.architecture.dtype.itemsize

    @property
    def shard(self) -> int:
        """Elements of this rank's share; each parameter is padded to a multiple of the ranks."""
        return sum(-(-size // self.sharding.ranks) for size in self.sizes) if self.sharding.uses_zero else self.weights

    @property
    def _masters_apart(self) -> bool:
        """Whether the optimizer updates a copy of the weights: one in another type.

        ZeRO-3 makes one in the same type too: it compares a torch.device with a string, which are never equal (0.19.8,
        `_create_fp32_partitions`).
        """
        return self.sharding.uses_zero or self._state_bytes != self._each

    @property
    def _state_bytes(self) -> int:
        assert self.optim is not None
        return 2 if self.optim.state_dtype is DType.bfloat16 else _FLOAT32

    def weights_held(self) -> list[Item]:
        """Parameters in the training type that stay on the device."""
        if self.sharding.uses_zero and self.sharding.zero.offload_param:
            return []
        return [self._item("weights", self.shard * self._each)]

    def resident(self) -> list[Item]:
        """What stays on the device all the time, once the first update has been made."""
        zero, items = self.sharding.zero, self.weights_held()
        if self.optim is None:
            return items
        if not (self.sharding.uses_zero and zero.offload_optimizer):
            items += self._states()
        if self.sharding.uses_zero:
            items.append(self._item("reduce bucket", zero.reduce_bucket_size * self._each))
        return items

    def on_host(self) -> list[Item]:
        """What stays in the host's memory all the time."""
        zero = self.sharding.zero
        items: list[Item] = []
        if not self.sharding.uses_zero:
            return items
        if zero.offload_param:
            items.append(self._item("weights", self.shard * self._each))
        if self.optim is not None and zero.offload_optimizer:
            items += self._states()
            items.append(self._item("gradients for the optimizer", self.shard * _FLOAT32))
        return items

    def _states(self) -> list[Item]:
        items = []
        if self._masters_apart:
            items.append(self._item("master weights", self.shard * self._state_bytes))
        items.append(self._item("optimizer states", 2 * self.shard * self._state_bytes))
        if self.ema:
            items.append(self._item("moving average", self.shard * _FLOAT32))
        if self.sharding.uses_zero:
            items.append(self._item("gradients", self.shard * self._gradient_bytes))
        return items

    @property
    def _gradient_bytes(self) -> int:
        """Of a number in ZeRO-3's sums of gradients."""
        return _FLOAT32 if self.sharding.zero.float32_gradients else self._each

    def gathered(self, hold: bool) -> list[Item]:
        """What is on the device beside `resident` while the model runs: its whole weights, or those of some layers."""
        zero = self.sharding.zero
        moves = zero.offload_param and self.sharding.on_gpu
        if not self.sharding.uses_zero or (self.sharding.ranks == 1 and not moves):
            return []
        if hold:
            sent = self.shard * self._each if moves and self.sharding.ranks > 1 else 0
            return [self._item("gathered weights", self.whole + sent)]
        live = min(self.weights, zero.stage3_max_live_parameters + zero.stage3_prefetch_bucket_size)
        return [self._item("live weights", live * self._each)]

    def gradients(self, num_passes: int) -> list[Item]:
        """Gradients that stand on the device during an update alone, after so many micro-batches of it.

        ZeRO-3 has its own at all times.
        """
        if self.sharding.uses_zero or num_passes == 0:
            return []
        return [self._item("gradients", self.weights * self._summed_bytes(num_passes))]

    def _summed_bytes(self, num_passes: int) -> int:
        """Of a number in plain PyTorch's gradients of so many micro-batches."""
        return self._each if num_passes == 1 else _FLOAT32

    def of_a_layer(self) -> list[Item]:
        """Gradients that ZeRO-3 keeps until the backward pass is through with a layer, which is fetched whole."""
        if not self.sharding.uses_zero:
            return []
        return [self._item("gradients of a layer", layer_size(self.architecture) * self._each)]

    def reduction(self) -> list[Item]:
        """What reducing a bucket of gradients takes for a moment."""
        if not self.sharding.uses_zero or self.sharding.ranks == 1:
            return []
        elements = min(self.weights, max(self.sharding.zero.reduce_bucket_size, max(self.sizes)))
        return [self._item("gradients being reduced", elements * self._each)]

    def step(self, num_passes: int) -> list[Item]:
        """What the optimizer's step takes for a moment: gradients in the type of what is updated.

        num_passes: micro-batches of the update. In plain PyTorch each gradient goes as soon as it is converted.
        """
        zero = self.sharding.zero
        if self.sharding.uses_zero:
            if zero.offload_optimizer:
                return []
            converted = self._state_bytes if self._state_bytes != self._gradient_bytes else 0
            return [self._item("gradients for the optimizer", self._group * (self._gradient_bytes + converted))]
        had, wanted = self._summed_bytes(num_passes), self._state_bytes
        if had == wanted:
            return []
        one = max(self.sizes) * wanted  # a parameter, beside the gradient that it had
        together = min(self.weights, max(groups.GROUP_SIZE, *self.sizes)) * (wanted - had)
        return [self._item("gradients for the optimizer", max(together, one))]

    def start(self) -> list[Item]:
        """What is on the device while the engine is made: masters and, for a moment, another copy of some of them."""
        items = self.weights_held()
        if self.optim is None or not self.sharding.uses_zero or self.sharding.zero.offload_optimizer:
            return items
        items += [item for item in self._states() if item.what == "master weights"]
        if self._state_bytes == self._each:
            return items
        return [*items, self._item("copies while masters are made", self._group * self._state_bytes)]

    @property
    def _group(self) -> int:
        """The most elements that the optimizer updates at a time; a parameter is not cut."""
        return min(self.shard, self.sharding.zero.sub_group_size + max(self.sizes) // self.sharding.ranks)

    def largest(self) -> list[Item]:
        """The largest parameter, gathered for an export."""
        if not self.sharding.uses_zero or self.sharding.ranks == 1:
            return []
        return [self._item("a gathered parameter", max(self.sizes) * self._each)]

    @property
    def saved(self) -> int:
        """Bytes of its part of a checkpoint, of all ranks together."""
        return self.weights * (3 * self._state_bytes + _FLOAT32 * self.ema) if self.optim is not None else 0

    @property
    def exported(self) -> int:
        """Bytes of the exported model, its moving average among them."""
        return self.whole * (1 + self.ema)

    def _item(self, what: str, size: int) -> Item:
        return Item(self.role, what, size)
