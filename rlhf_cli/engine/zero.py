"""DeepSpeed ZeRO engines around the four models. Their API stops here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed import initialize
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from pydantic import ValidationError
from torch import Tensor, nn

from rlhf_cli.algo.schedules import cosine_factor, decay_progress, linear_factor, warmup_factor
from rlhf_cli.config.errors import InputError, NonFiniteError
from rlhf_cli.config.sections import OptimConfig, Schedule
from rlhf_cli.engine import distributed
from rlhf_cli.engine.shards import ShardReader, write_shards
from rlhf_cli.engine.watchdog import PROGRESS

_MOMENTS = ("exp_avg", "exp_avg_sq")
_ADAM_STEP = "adam_step"


@dataclass(frozen=True)
class StepResult:
    grad_norm: float  # before clipping; infinite where a gradient is not finite
    skipped: bool  # DeepSpeed leaves the weights alone when a gradient is not finite
    learning_rate: float  # of the update just made


class FrozenEngine:
    """A model that is only read: reference and reward model. ZeRO-3 shards its parameters."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, deepspeed: dict[str, Any]) -> None:
        module.requires_grad_(False)
        config = _engine_config(deepspeed, dtype)
        config["zero_optimization"].pop("offload_optimizer", None)
        self._engine = _initialize(model=module, config=config)
        self._engine.eval()

    @property
    def module(self) -> nn.Module:
        """The wrapped module; under ZeRO-3 its parameters are empty outside a forward pass."""
        module: nn.Module = self._engine.module
        return module

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        PROGRESS.tick()
        return self._engine(*args, **kwargs)


class TrainEngine:
    """A model with its optimizer and learning-rate schedule: policy, value model, or a reward model in training.

    num_updates: the updates of the whole run, over which the schedule goes; ema_decay: of a moving average of the
    float32 weights, which is kept in shards as they are.
    """

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
        config["zero_allow_untested_optimizer"] = True
        config["zero_force_ds_cpu_optimizer"] = False  # with offload too: DeepSpeed's own needs a compiler
        # backward() only accumulates and step() reduces, however many micro-batches an update has
        config["managed_gradient_accumulation"] = False
        optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=optim.learning_rate,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self._engine = _initialize(model=module, optimizer=optimizer, config=config)
        self._engine.train()
        self._optim, self._num_updates, self._ema_decay = optim, num_updates, ema_decay
        self._num_skipped = 0  # in a row
        offloaded = "offload_optimizer" in config["zero_optimization"]
        self._ema_device = torch.device("cpu") if offloaded else distributed.device()
        self._ema = {} if ema_decay is None else dict(self._averaged_from_weights())

    @property
    def module(self) -> nn.Module:
        """The wrapped module; under ZeRO-3 its parameters are empty outside `gathered()`."""
        module: nn.Module = self._engine.module
        return module

    @property
    def has_ema(self) -> bool:
        """Whether a moving average of the weights is kept."""
        return self._ema_decay is not None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        PROGRESS.tick()
        return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`, this rank's share of a global mean (the shares of all ranks add up to it).

        DeepSpeed averages gradients over the ranks, so the share is multiplied by their number.
        """
        PROGRESS.tick()
        self._engine.backward(loss * distributed.world_size(), scale_wrt_gas=False)

    def step(self, update: int) -> StepResult:
        """Reduce and clip the accumulated gradients and update the weights; all ranks together.

        update: the number of the update in the run, from 0, which alone sets the learning rate. Raises NonFiniteError
        once max_skipped_updates in a row were not finite.
        """
        PROGRESS.tick()
        rate = learning_rate(self._optim, update, self._num_updates)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        applied = self._engine.was_step_applied()
        self._count_skipped(applied)
        if applied and self._ema_decay is not None:
            for name, parameter in self.module.named_parameters():
                self._ema[name].lerp_(_master_shard(parameter).to(self._ema_device), 1 - self._ema_decay)
        return StepResult(float(self._engine.get_global_grad_norm()), not applied, rate)

    def _count_skipped(self, applied: bool) -> None:
        self._num_skipped = 0 if applied else self._num_skipped + 1
        if self._num_skipped == self._optim.max_skipped_updates > 0:
            raise NonFiniteError(
                f"{self._num_skipped} updates in a row had gradients that are not finite; the weights are those before "
                "them and the last checkpoint is intact: look for broken data or lower the learning rate"
            )

    @contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        """Hold the full weights on every rank, without DeepSpeed's per-layer hooks, and give them back afterwards.

        For generation: one gather instead of one a layer and token, and ranks may decode different lengths. The same
        as deepspeed.runtime.zero.unwrap_model_for_generation (0.19.8), which leaves the engine without its hooks when
        the body raises; here they come back in any case.
        """
        offload = self._engine.optimizer.parameter_offload
        with GatheredParameters(list(self.module.parameters())):
            for hook in (*offload.forward_hooks, *offload.backward_hooks):
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield self.module
            finally:
                offload._register_deepspeed_module(offload.module)

    def full_state_dict(self) -> dict[str, Tensor]:
        """Collect the full weights on rank 0's CPU, in the training dtype; other ranks take part and get {}."""
        state: dict[str, Tensor] = {}
        is_first = distributed.rank() == 0
        for name, parameter in self.module.named_parameters():
            with GatheredParameters([parameter]):
                if is_first:
                    state[name] = parameter.detach().cpu().clone()
        if is_first:
            state.update((name, buffer.detach().cpu().clone()) for name, buffer in _saved_buffers(self.module))
        return state

    def full_ema(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `state`, which full_state_dict gave, with the averaged weights; {} on ranks but the first."""
        averaged = dict(state)
        for name, _ in self.module.named_parameters():
            flat = torch.cat(distributed.gather_tensors(self._ema[name].to(distributed.device())))
            if state:
                like = state[name]
                averaged[name] = flat[: like.numel()].view(like.shape).to(like.dtype).cpu()  # the last shard is padded
        return averaged

    def largest_difference(self, other: TrainEngine) -> float:
        """Return the largest difference between weights of the same name; what only one has (a head) is left out."""
        theirs = dict(other.module.named_parameters())
        shared = [(ours, theirs[name]) for name, ours in self.module.named_parameters() if name in theirs]
        differences = [_real_part(_master_shard(ours) - _master_shard(parameter), ours) for ours, parameter in shared]
        return max((float(one.abs().max()) for one in differences if one.numel()), default=0.0)

    def _averaged_from_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.module.named_parameters():
            yield name, _master_shard(parameter).to(self._ema_device, copy=True)

    @property
    def num_skipped(self) -> int:
        """Updates skipped in a row until now."""
        return self._num_skipped

    @property
    def state_bytes(self) -> int:
        """Bytes that `save` writes, of all ranks together: float32 weights, AdamW's two means, the moving average."""
        return 4 * (len(_MOMENTS) + 1 + self.has_ema) * self.num_weights

    @property
    def num_weights(self) -> int:
        """Weights of the whole model."""
        return sum(parameter.ds_numel for _, parameter in _parameters(self.module))

    @property
    def export_bytes(self) -> int:
        """Bytes of the whole model in the training dtype, and of its average where there is one."""
        each = max(parameter.element_size() for parameter in self.module.parameters())
        return each * self.num_weights * (1 + self.has_ema)

    def save(self, folder: Path) -> None:
        """Write this rank's shards of weights, optimizer and moving average; no rank waits for another.

        Raises NonFiniteError rather than write a weight that is not finite.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_shards(self._shards(), folder, distributed.rank())

    def _shards(self) -> Iterator[tuple[str, Tensor]]:
        adam = self._engine.optimizer.optimizer.state  # empty before the first update
        for name, parameter in _parameters(self.module):
            master = _real_part(_master_shard(parameter), parameter)
            if not master.isfinite().all():
                raise NonFiniteError(f"the weight {name} is not finite; no checkpoint of it is written")
            yield f"master/{name}", master
            for moment in _MOMENTS if adam else ():
                yield f"{moment}/{name}", _real_part(safe_get_local_optimizer_state(parameter, moment), parameter)
            if self.has_ema:
                yield f"ema/{name}", _real_part(self._ema[name], parameter)
        if adam:
            yield _ADAM_STEP, next(iter(adam.values()))["step"].reshape(1)

    def load(self, folder: Path, num_skipped: int) -> None:
        """Read back what `save` wrote on any number of ranks; all ranks together."""
        optimizer = self._engine.optimizer
        optimizer.checkpoint_event_prologue()
        with ShardReader(folder) as reader:
            if _ADAM_STEP in reader:
                for flat in optimizer.fp32_partitioned_groups_flat:
                    zeros = {moment: torch.zeros_like(flat) for moment in _MOMENTS}
                    optimizer.optimizer.state[flat] = {
                        "step": reader.read(_ADAM_STEP, 0, 1)[0].to(flat.device),
                        **zeros,
                    }
            for name, parameter in _parameters(self.module):
                size = parameter.ds_tensor.numel()
                start = distributed.rank() * size
                master = reader.read(f"master/{name}", start, size)
                safe_set_local_fp32_param(parameter, master)
                parameter.ds_tensor.data.copy_(master)  # in the training dtype
                for moment in _MOMENTS if _ADAM_STEP in reader else ():
                    safe_set_local_optimizer_state(parameter, reader.read(f"{moment}/{name}", start, size), moment)
                if self.has_ema:
                    self._ema[name] = reader.read(f"ema/{name}", start, size).to(self._ema_device)
        optimizer.checkpoint_event_epilogue()
        self._num_skipped = num_skipped


def fingerprint(module: nn.Module) -> str:
    """Return the sum of the bits of all weights, the same on any number of ranks; other weights have another one.

    Of a module that ZeRO-3 has sharded; all ranks together. It tells accidents: the order of weights is not in it.
    """
    bits = {2: torch.int16, 4: torch.int32}
    total = torch.zeros((), dtype=torch.int64, device=distributed.device())
    for _, parameter in _parameters(module):
        shard = _real_part(parameter.ds_tensor.detach(), parameter)
        total += shard.view(bits[shard.element_size()]).sum(dtype=torch.int64).to(total.device)
    return str(int(distributed.global_sum(total)))


def _initialize(**options: Any) -> Any:
    """Make DeepSpeed's engine; raise InputError for a key of `deepspeed.` that it does not take."""
    PROGRESS.tick()
    try:
        return initialize(**options)[0]
    except ValidationError as error:
        first = error.errors(include_input=False)[0]  # what was given may be secret
        key = ".".join(map(str, first["loc"]))
        raise InputError(
            f"deepspeed: {error.title} refuses '{key}': {first['msg']}; mend the deepspeed section"
        ) from None


def _engine_config(user: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    config = copy.deepcopy(user)
    config["train_micro_batch_size_per_gpu"] = 1  # required by DeepSpeed, of no effect here
    config["gradient_accumulation_steps"] = 1
    config["bf16"] = {"enabled": dtype is torch.bfloat16}
    config.setdefault("zero_optimization", {}).setdefault("stage", 3)
    return config


def learning_rate(optim: OptimConfig, update: int, num_updates: int) -> float:
    """Return the learning rate of an update, counted from 0: a function of its number alone, so nothing is saved."""
    num_warmup = round(optim.warmup_ratio * num_updates)
    factor = warmup_factor(update, num_warmup)
    progress = decay_progress(update, num_updates, num_warmup)
    match optim.schedule:
        case Schedule.linear:
            factor *= linear_factor(progress, optim.min_lr_ratio)
        case Schedule.cosine:
            factor *= cosine_factor(progress, optim.min_lr_ratio)
        case Schedule.constant:
            pass
    return optim.learning_rate * factor


def _parameters(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and parameters, which have DeepSpeed's ds_numel and ds_tensor."""
    yield from module.named_parameters()


def _real_part(shard: Tensor, parameter: Any) -> Tensor:
    """A shard without the elements that fill up the last ranks' shards, which DeepSpeed never sets (0.19.8)."""
    size = shard.numel()
    return shard[: max(0, min(size, parameter.ds_numel - distributed.rank() * size))]


def _master_shard(parameter: nn.Parameter) -> Tensor:
    """This rank's part of a parameter's float32 weights, on the device; the optimizer's own require a gradient."""
    shard: Tensor = safe_get_local_fp32_param(parameter).detach()
    return shard


def _saved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    saved = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name in saved:
            yield name, buffer
