"""The interface between the trainers and the four models, whether plain PyTorch or DeepSpeed holds the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_cli.algo.schedules import cosine_factor, decay_progress, linear_factor, warmup_factor
from rlhf_cli.config.errors import NonFiniteError
from rlhf_cli.config.sections import OptimConfig, Schedule
from rlhf_cli.engine import distributed
from rlhf_cli.engine.adam_state import MOMENTS, saved_bytes
from rlhf_cli.engine.shards import open_shards, write_shards
from rlhf_cli.system.watchdog import PROGRESS

_ADAM_STEP = "adam_step"
_BITS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class StepResult:
    grad_norm: float  # before clipping; not finite if any gradient is not finite
    skipped: bool  # the update was skipped because a gradient was not finite
    learning_rate: float  # of this update


class Engine(ABC):
    """A model whose weights may be sharded or offloaded."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The wrapped module; its parameters may be empty outside `gathered()`."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's forward pass."""

    @abstractmethod
    def gathered(self, enabled: bool = True) -> AbstractContextManager[nn.Module]:
        """Hold the full weights on every rank while the body runs, and release them at its end, even if it raises.

        This takes one gather instead of one per layer and pass. Without backward passes, ranks may run different
        numbers of forward passes. The body must not call `step`. `enabled=False` changes nothing, for models that do
        not fit on one device; a nested call changes nothing either.
        """

    @abstractmethod
    def _shard(self, parameter: nn.Parameter) -> Tensor:
        """Return this rank's part of a parameter in the training dtype, flat."""

    def fingerprint(self) -> str:
        """Return the sum of the bits of all weights, which does not depend on the number of ranks; a collective.

        It detects accidental changes; it does not depend on the order of the weights.
        """
        total = torch.zeros((), dtype=torch.int64, device=distributed.device())
        for parameter in self.module.parameters():
            shard = self._shard(parameter)
            total += shard.view(_BITS[shard.element_size()]).sum(dtype=torch.int64).to(total.device)
        return str(int(distributed.global_sum(total)))


class FrozenEngine(Engine):
    """A model that is not trained: the reference or a reward model."""


class TrainEngine(Engine):
    """A model in training, with its optimizer and learning-rate schedule: policy, value model or reward model.

    num_updates: updates in the whole run, for the schedule. ema_decay: decay of a moving average of the float32
    weights, which is sharded like them; None: no average.
    """

    def __init__(self, optim: OptimConfig, num_updates: int, ema_decay: float | None, ema_device: torch.device) -> None:
        self._optim, self._num_updates, self._ema_decay, self._ema_device = optim, num_updates, ema_decay, ema_device
        self._num_skipped = 0  # in a row
        weights = [] if ema_decay is None else self.module.named_parameters()
        self._ema = {name: self._master(one).to(ema_device, torch.float32, copy=True) for name, one in weights}

    @property
    @abstractmethod
    def has_full_weights(self) -> bool:
        """Whether every rank holds the full weights at all times."""

    @property
    def has_ema(self) -> bool:
        """Whether the engine keeps a moving average of the weights."""
        return self._ema_decay is not None

    @property
    def num_skipped(self) -> int:
        """The number of consecutive updates skipped until now."""
        return self._num_skipped

    @property
    def num_weights(self) -> int:
        """The number of weights in the model, over all ranks."""
        return sum(self._size(parameter) for parameter in self.module.parameters())

    @property
    def state_bytes(self) -> int:
        """Bytes that `save` writes over all ranks: weights, AdamW's two moments, the moving average."""
        return saved_bytes(self._optim, self.has_ema) * self.num_weights

    @property
    def export_bytes(self) -> int:
        """Bytes of the exported model in the training dtype, and of its moving average if there is one."""
        each = max(parameter.element_size() for parameter in self.module.parameters())
        return each * self.num_weights * (1 + self.has_ema)

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`, this rank's share of a global mean; the shares of all ranks add up to it.

        `loss` must come from the model's most recent forward pass with gradients.
        """

    @abstractmethod
    def full_state_dict(self) -> dict[str, Tensor]:
        """Collect the full weights on rank 0's CPU, in the training dtype; other ranks take part and return {}."""

    def step(self, update: int) -> StepResult:
        """Reduce and clip the accumulated gradients and update the weights; a collective.

        update: the number of this update in the run, from 0; it alone determines the learning rate. Raises
        NonFiniteError after max_skipped_updates consecutive updates with gradients that are not finite.
        """
        PROGRESS.tick()
        rate = learning_rate(self._optim, update, self._num_updates)
        grad_norm, applied = self._update(rate)
        self._count_skipped(applied)
        if applied and self._ema_decay is not None:
            for name, parameter in self.module.named_parameters():
                self._ema[name].lerp_(self._master(parameter).to(self._ema_device, torch.float32), 1 - self._ema_decay)
        return StepResult(grad_norm, not applied, rate)

    def _count_skipped(self, applied: bool) -> None:
        self._num_skipped = 0 if applied else self._num_skipped + 1
        if self._num_skipped == self._optim.max_skipped_updates > 0:
            raise NonFiniteError(
                f"{self._num_skipped} consecutive updates had gradients that are not finite and were skipped; the last "
                "checkpoint is intact. Look for broken data or lower the learning rate"
            )

    def full_ema(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the result of full_state_dict with averaged weights; {} on all ranks except rank 0."""
        averaged = dict(state)
        for name, _ in self.module.named_parameters():
            flat = torch.cat(distributed.gather_tensors(self._ema[name].to(distributed.device())))
            if state:
                like = state[name]
                averaged[name] = flat[: like.numel()].view(like.shape).to(like.dtype).cpu()  # the last shard is padded
        return averaged

    def largest_difference(self, other: TrainEngine) -> float:
        """Return the largest difference between weights of the same name; weights of one model alone do not count."""
        theirs = dict(other.module.named_parameters())
        shared = [(ours, theirs[name]) for name, ours in self.module.named_parameters() if name in theirs]
        differences = [
            self._without_padding(self._master(ours) - other._master(parameter), ours) for ours, parameter in shared
        ]
        return max((float(one.abs().max()) for one in differences if one.numel()), default=0.0)

    def save(self, folder: Path) -> None:
        """Write this rank's shards of the weights, the optimizer and the moving average; not a collective.

        Raises NonFiniteError instead of writing a weight that is not finite.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_shards(self._shards(), folder, distributed.rank())

    def _shards(self) -> Iterator[tuple[str, Tensor]]:
        states = list(self._optimizer()[0].state.values())  # empty before the first update under ZeRO-3
        for name, parameter in self.module.named_parameters():
            master = self._without_padding(self._master(parameter), parameter)
            if not master.isfinite().all():
                raise NonFiniteError(f"the weight {name} is not finite; no checkpoint was written")
            yield f"master/{name}", master
            for moment in MOMENTS if states else ():
                yield f"{moment}/{name}", self._without_padding(self._moment(parameter, moment), parameter)
            if self.has_ema:
                yield f"ema/{name}", self._without_padding(self._ema[name], parameter)
        if states:
            yield _ADAM_STEP, states[0]["step"].reshape(1)

    def load(self, folder: Path, num_skipped: int) -> None:
        """Load what `save` wrote on any number of ranks; a collective."""
        with open_shards(folder) as reader, self._loading():
            if _ADAM_STEP in reader:
                self._start_adam(reader.read(_ADAM_STEP, 0, 1)[0])
            for name, parameter in self.module.named_parameters():
                size = self._shard_size(parameter)
                start = distributed.rank() * size
                self._set_master(parameter, reader.read(f"master/{name}", start, size))
                for moment in MOMENTS if _ADAM_STEP in reader else ():
                    self._set_moment(parameter, moment, reader.read(f"{moment}/{name}", start, size))
                if self.has_ema:
                    self._ema[name] = reader.read(f"ema/{name}", start, size).to(self._ema_device)
        self._num_skipped = num_skipped

    def _start_adam(self, step: Tensor) -> None:
        """Create AdamW's states as its first update would: moments of 0, and `step` updates done.

        Each state has its own counter, because AdamW increments it in place.
        """
        optimizer, weights = self._optimizer()
        for weight in weights:
            zeros = {moment: torch.zeros_like(weight) for moment in MOMENTS}
            optimizer.state[weight] = {"step": step.clone().to(weight.device), **zeros}

    def _without_padding(self, shard: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return a shard without the padding of the last ranks' shards, which is never initialised."""
        size = shard.numel()
        return shard[: max(0, min(size, self._size(parameter) - distributed.rank() * size))]

    @abstractmethod
    def _update(self, rate: float) -> tuple[float, bool]:
        """Update the weights with a learning rate; return the gradient norm, and whether all gradients were finite."""

    @abstractmethod
    def _size(self, parameter: nn.Parameter) -> int:
        """Return the number of elements in the complete parameter."""

    @abstractmethod
    def _shard_size(self, parameter: nn.Parameter) -> int:
        """Return the number of elements in this rank's part, including padding."""

    @abstractmethod
    def _master(self, parameter: nn.Parameter) -> Tensor:
        """Return this rank's part of the weights that the optimizer updates, flat, in float32 or optim.state_dtype."""

    @abstractmethod
    def _set_master(self, parameter: nn.Parameter, shard: Tensor) -> None:
        """Set this rank's part of a parameter, in the optimizer's dtype and in the training dtype."""

    @abstractmethod
    def _optimizer(self) -> tuple[torch.optim.AdamW, list[Tensor]]:
        """Return AdamW and the weights, or flat groups of weights, that it updates."""

    @abstractmethod
    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        """Return this rank's part of one of AdamW's MOMENTS, flat."""

    @abstractmethod
    def _set_moment(self, parameter: nn.Parameter, moment: str, shard: Tensor) -> None:
        """Set this rank's part of one of AdamW's MOMENTS."""

    @abstractmethod
    def _loading(self) -> AbstractContextManager[None]:
        """Return the context in which weights and moments may be set."""


def adamw(parameters: list[Tensor], optim: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over flat or shaped float32 weights."""
    return torch.optim.AdamW(
        parameters,
        lr=optim.learning_rate,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def saved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and buffers that belong to a module's exported weights."""
    saved = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name in saved:
            yield name, buffer


def learning_rate(optim: OptimConfig, update: int, num_updates: int) -> float:
    """Return the learning rate of an update, counted from 0. It depends on nothing else, so nothing must be saved."""
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
