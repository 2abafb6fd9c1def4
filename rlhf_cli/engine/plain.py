"""Engines for one rank in plain PyTorch: nothing is sharded, so nothing is gathered."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_cli.config.sections import DType, OptimConfig
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import Engine, FrozenEngine, TrainEngine, adamw, saved_buffers
from rlhf_cli.engine.param_groups import parameter_groups
from rlhf_cli.system.watchdog import PROGRESS


class _Unsharded(Engine):
    """A complete model on one device."""

    _module: nn.Module

    @property
    def module(self) -> nn.Module:
        """The wrapped module."""
        return self._module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        PROGRESS.tick()
        return self._module(*args, **kwargs)

    def gathered(self, enabled: bool = True) -> AbstractContextManager[nn.Module]:
        """Return a context that does nothing: the full weights are always here."""
        return nullcontext(self._module)

    def _shard(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().flatten()


class PlainFrozen(_Unsharded, FrozenEngine):
    """A model on this rank's device, or on the given one, without gradients."""

    def __init__(self, module: nn.Module, device: torch.device | None = None) -> None:
        self._module = module.to(device or distributed.device()).requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class PlainTrain(_Unsharded, TrainEngine):
    """A model with its optimizer. Gradients are accumulated in float32; by default, weights are updated in float32."""

    def __init__(self, module: nn.Module, optim: OptimConfig, num_updates: int, ema_decay: float | None = None) -> None:
        self._module = module.to(distributed.device()).train()
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._masters: dict[nn.Parameter, Tensor] = {}  # a weight in the optimizer's dtype is its own master
        dtype = torch.bfloat16 if optim.state_dtype is DType.bfloat16 else torch.float32
        for parameter in module.parameters():
            self._masters[parameter] = parameter.detach().to(dtype)
            parameter.register_post_accumulate_grad_hook(self._add_gradient)  # type: ignore[no-untyped-call]
        self._adamw = adamw(list(self._masters.values()), optim)
        self._start_adam(torch.zeros(()))  # allocated now: in the first update it would fragment memory freed later
        self._groups = list(parameter_groups(self._masters))
        super().__init__(optim, num_updates, ema_decay, distributed.device())

    @property
    def has_full_weights(self) -> bool:
        """True: nothing is sharded."""
        return True

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`."""
        PROGRESS.tick()
        loss.backward()  # type: ignore[no-untyped-call]

    def _add_gradient(self, parameter: Tensor) -> None:
        """Keep a gradient that was just computed; add the second and later gradients of an update in float32."""
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        before = self._gradients.get(parameter)
        self._gradients[parameter] = parameter.grad if before is None else before.float().add_(parameter.grad)
        parameter.grad = None

    @torch.no_grad()
    def _update(self, rate: float) -> tuple[float, bool]:
        held = (self._gradients[parameter] for parameter in self._masters if parameter in self._gradients)
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in held]
        norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
        if norm == float("inf") or norm != norm:
            self._gradients.clear()
            return norm, False
        factor = self._optim.max_grad_norm / (norm + 1e-6) if self._optim.max_grad_norm else 1.0
        self._adamw.param_groups[0]["lr"] = rate
        for group in self._groups:
            for parameter in group:
                gradient, master = self._gradients.pop(parameter, None), self._masters[parameter]
                master.grad = torch.zeros_like(master) if gradient is None else _scaled(gradient, factor, master.dtype)
            self._adamw.step()
            self._adamw.zero_grad()
        for parameter, master in self._masters.items():
            if parameter.dtype is not master.dtype:
                parameter.copy_(master)
        return norm, True

    def full_state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the weights on the CPU, in the training dtype."""
        tensors = (*self._module.named_parameters(), *saved_buffers(self._module))
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors}

    def _size(self, parameter: nn.Parameter) -> int:
        return parameter.numel()

    def _shard_size(self, parameter: nn.Parameter) -> int:
        return parameter.numel()

    def _master(self, parameter: nn.Parameter) -> Tensor:
        return self._masters[parameter].flatten()

    def _set_master(self, parameter: nn.Parameter, shard: Tensor) -> None:
        self._masters[parameter].copy_(shard.view(parameter.shape))
        parameter.data.copy_(self._masters[parameter])

    def _optimizer(self) -> tuple[torch.optim.AdamW, list[Tensor]]:
        return self._adamw, list(self._masters.values())

    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        tensor: Tensor = self._adamw.state[self._masters[parameter]][moment]
        return tensor.flatten()

    def _set_moment(self, parameter: nn.Parameter, moment: str, shard: Tensor) -> None:
        self._adamw.state[self._masters[parameter]][moment].copy_(shard.view(parameter.shape))

    def _loading(self) -> AbstractContextManager[None]:
        return nullcontext()


def _scaled(gradient: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """Return a gradient in the optimizer's dtype, scaled down if the factor is below 1; overwrites its argument."""
    wide = gradient.to(torch.promote_types(gradient.dtype, dtype))
    return (wide.mul_(factor) if factor < 1 else wide).to(dtype)
