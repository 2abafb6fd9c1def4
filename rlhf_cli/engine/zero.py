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
from deepspeed.utils import safe_get_local_fp32_param
from torch import Tensor, nn

from rlhf_cli.algo.schedules import cosine_factor, decay_progress, linear_factor, warmup_factor
from rlhf_cli.config.errors import InputError, TrainingError
from rlhf_cli.config.sections import OptimConfig, Schedule
from rlhf_cli.engine import distributed


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
        self._engine = initialize(model=module, config=config)[0]
        self._engine.eval()

    @property
    def module(self) -> nn.Module:
        """The wrapped module; under ZeRO-3 its parameters are empty outside a forward pass."""
        module: nn.Module = self._engine.module
        return module

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
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
        self._engine = initialize(model=module, optimizer=optimizer, config=config)[0]
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
        return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`, this rank's share of a global mean (the shares of all ranks add up to it).

        DeepSpeed averages gradients over the ranks, so the share is multiplied by their number.
        """
        self._engine.backward(loss * distributed.world_size(), scale_wrt_gas=False)

    def step(self, update: int) -> StepResult:
        """Reduce and clip the accumulated gradients and update the weights; all ranks together.

        update: the number of the update in the run, from 0, which alone sets the learning rate. Raises TrainingError
        once max_skipped_updates in a row were not finite.
        """
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
            raise TrainingError(
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
        each = [(_master_shard(ours) - _master_shard(parameter)).abs().max() for ours, parameter in shared]
        return float(torch.stack(each).max())

    def _averaged_from_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.module.named_parameters():
            yield name, _master_shard(parameter).to(self._ema_device, copy=True)

    def save(self, folder: str, tag: str) -> None:
        """Write weights, optimizer and moving average below folder/tag; all ranks together."""
        self._engine.save_checkpoint(folder, tag=tag, save_latest=False)
        if self._ema:
            torch.save(self._ema, _ema_file(folder, tag))

    def load(self, folder: str, tag: str) -> None:
        """Read back what `save` wrote, on the same number of ranks; all ranks together."""
        path, _ = self._engine.load_checkpoint(folder, tag=tag)
        if path is None:
            raise FileNotFoundError(f"{folder}/{tag}: no checkpoint of this engine")
        if self._ema:
            if not _ema_file(folder, tag).exists():
                raise InputError(f"{folder} was written without ppo.ema_decay; leave it out to resume")
            saved = torch.load(_ema_file(folder, tag), map_location=self._ema_device, weights_only=True)
            self._ema = {name: saved[name] for name in self._ema}


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


def _master_shard(parameter: nn.Parameter) -> Tensor:
    """This rank's part of a parameter's float32 weights, on the device; the optimizer's own require a gradient."""
    shard: Tensor = safe_get_local_fp32_param(parameter).detach()
    return shard


def _ema_file(folder: str, tag: str) -> Path:
    return Path(folder, tag, f"ema_rank{distributed.rank()}.pt")


def _saved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    saved = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name in saved:
            yield name, buffer
