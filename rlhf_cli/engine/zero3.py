"""DeepSpeed ZeRO-3 engines for the four models. No other module uses DeepSpeed's API."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed import initialize
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
    set_z3_leaf_modules,
)
from pydantic import ValidationError
from torch import Tensor, nn

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DType, OptimConfig
from rlhf_cli.config.zero_settings import REDUCE_BUCKET
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import Engine, FrozenEngine, TrainEngine, adamw, saved_buffers
from rlhf_cli.system.watchdog import PROGRESS


class _Sharded(Engine):
    """A model whose parameters ZeRO-3 shards."""

    _engine: Any  # DeepSpeed's
    _is_gathered = False

    @property
    def module(self) -> nn.Module:
        """The wrapped module; its parameters are empty outside a forward pass or `gathered()`."""
        module: nn.Module = self._engine.module
        return module

    @contextmanager
    def gathered(self, enabled: bool = True) -> Iterator[nn.Module]:
        """Hold the full weights, without DeepSpeed's hooks: see Engine."""
        if not enabled or self._is_gathered:
            yield self.module
            return
        with _full_weights(self.module, self._parameter_offload):
            self._is_gathered = True
            try:
                yield self.module
            finally:
                self._is_gathered = False

    @property
    def _parameter_offload(self) -> DeepSpeedZeRoOffload:
        return self._engine.optimizer

    def _shard(self, parameter: Any) -> Tensor:
        return _without_padding(parameter.ds_tensor.detach(), parameter)


class ZeroFrozen(_Sharded, FrozenEngine):
    """A model whose parameters ZeRO-3 shards, without gradients."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, deepspeed: dict[str, Any]) -> None:
        module.requires_grad_(False)
        config = _engine_config(deepspeed, dtype)
        config["zero_optimization"].pop("offload_optimizer", None)
        self._engine = _initialize(model=module, config=config)
        self._engine.eval()

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        PROGRESS.tick()
        return (self.module if self._is_gathered else self._engine)(*args, **kwargs)


class ZeroTrain(_Sharded, TrainEngine):
    """A model whose parameters, gradients and optimizer states ZeRO-3 shards."""

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        optim: OptimConfig,
        num_updates: int,
        deepspeed: dict[str, Any],
        ema_decay: float | None = None,
    ) -> None:
        config = _engine_config(deepspeed, dtype)
        config["gradient_clipping"] = optim.max_grad_norm
        if optim.state_dtype is DType.bfloat16:
            config["bf16"] |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
        config["zero_allow_untested_optimizer"] = True
        config["zero_force_ds_cpu_optimizer"] = False  # even with offload: DeepSpeed's optimizer needs a compiler
        # backward() only accumulates and step() reduces, whatever the number of micro-batches
        config["managed_gradient_accumulation"] = False
        optimizer = adamw(list(module.parameters()), optim)
        self._engine = _initialize(model=module, optimizer=optimizer, config=config)
        self._engine.train()
        offloaded = "offload_optimizer" in config["zero_optimization"]
        super().__init__(optim, num_updates, ema_decay, torch.device("cpu") if offloaded else distributed.device())

    @property
    def has_full_weights(self) -> bool:
        """False: the weights are sharded or in CPU memory."""
        return False

    @property
    def _parameter_offload(self) -> DeepSpeedZeRoOffload:
        return self._engine.optimizer.parameter_offload

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        PROGRESS.tick()
        needs_engine = torch.is_grad_enabled()  # DeepSpeed counts the passes whose gradients it accumulates
        return (self.module if self._is_gathered and not needs_engine else self._engine)(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients. DeepSpeed averages over the ranks, so the loss is multiplied by their number."""
        PROGRESS.tick()
        self._engine.backward(loss * distributed.world_size(), scale_wrt_gas=False)

    def _update(self, rate: float) -> tuple[float, bool]:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm()), bool(self._engine.was_step_applied())

    def full_state_dict(self) -> dict[str, Tensor]:
        """Collect the full weights on rank 0's CPU, in the training dtype; other ranks take part and return {}."""
        state: dict[str, Tensor] = {}
        is_first = distributed.rank() == 0
        for name, parameter in self.module.named_parameters():
            with GatheredParameters([parameter]):
                if is_first:
                    state[name] = parameter.detach().cpu().clone()
        if is_first:
            state.update((name, buffer.detach().cpu().clone()) for name, buffer in saved_buffers(self.module))
        return state

    def _size(self, parameter: Any) -> int:
        return int(parameter.ds_numel)

    def _shard_size(self, parameter: Any) -> int:
        return int(parameter.ds_tensor.numel())

    def _master(self, parameter: nn.Parameter) -> Tensor:
        shard: Tensor = safe_get_local_fp32_param(parameter).detach()  # the optimizer's copies require a gradient
        return shard

    def _set_master(self, parameter: Any, shard: Tensor) -> None:
        safe_set_local_fp32_param(parameter, shard)
        parameter.ds_tensor.data.copy_(shard)

    def _optimizer(self) -> tuple[torch.optim.AdamW, list[Tensor]]:
        optimizer = self._engine.optimizer
        return optimizer.optimizer, optimizer.fp32_partitioned_groups_flat

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        tensor: Tensor = safe_get_local_optimizer_state(parameter, moment)
        return tensor

    def _set_moment(self, parameter: nn.Parameter, moment: str, shard: Tensor) -> None:
        safe_set_local_optimizer_state(parameter, shard, moment)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        self._engine.optimizer.checkpoint_event_prologue()
        yield
        self._engine.optimizer.checkpoint_event_epilogue()


@contextmanager
def _full_weights(module: nn.Module, offload: DeepSpeedZeRoOffload) -> Iterator[None]:
    """Hold a module's full weights, without DeepSpeed's hooks around its layers and with torch's linear function.

    deepspeed.runtime.zero.unwrap_model_for_generation (0.19.8) does the same, but it loses the engine's hooks when the
    body raises, and it keeps DeepSpeed's linear function, which is made for backward passes.
    """
    linear = nn.functional.linear
    with GatheredParameters(list(module.parameters())):
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        nn.functional.linear = getattr(InsertPostInitMethodToModuleSubClasses, "linear_bk", linear)
        try:
            yield
        finally:
            nn.functional.linear = linear
            offload._register_deepspeed_module(offload.module)


def check_keys(deepspeed: dict[str, Any]) -> None:
    """Raise InputError for a key in the `deepspeed` section that DeepSpeed does not accept."""
    with _as_input_error():
        DeepSpeedConfig(_engine_config(deepspeed, torch.float32))


def _initialize(**options: Any) -> Any:
    """Create a DeepSpeed engine; raise InputError for a key in the `deepspeed` section that it does not accept."""
    PROGRESS.tick()
    _fetch_layers_at_once(options["model"])
    with _as_input_error():
        return initialize(**options)[0]


@contextmanager
def _as_input_error() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_input=False)[0]  # the value may be secret
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"deepspeed: {error.title} does not accept '{key}': {first['msg']}. Fix or remove it in the YAML"
        ) from None


def _engine_config(user: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    config = copy.deepcopy(user)
    config["train_micro_batch_size_per_gpu"] = 1  # required by DeepSpeed, without effect here
    config["gradient_accumulation_steps"] = 1
    config["bf16"] = {"enabled": dtype is torch.bfloat16}
    zero = config.setdefault("zero_optimization", {})
    zero.setdefault("stage", 3)
    zero.setdefault("reduce_bucket_size", REDUCE_BUCKET)
    if distributed.device().type == "cpu":
        zero["overlap_comm"] = False  # a CPU has no streams to overlap, and the second buffer would still be copied
    return config


def _without_padding(shard: Tensor, parameter: Any) -> Tensor:
    """Return a shard without the padding of the last ranks' shards, which DeepSpeed never initialises (0.19.8)."""
    size = shard.numel()
    return shard[: max(0, min(size, parameter.ds_numel - distributed.rank() * size))]


def _fetch_layers_at_once(model: nn.Module) -> None:
    """Let ZeRO-3 fetch each transformer layer with one hook and one gather, instead of one per submodule."""
    names = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    layers = {type(part) for part in model.modules() if type(part).__name__ in names}
    if layers:
        set_z3_leaf_modules(model, list(layers))
