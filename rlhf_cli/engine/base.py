"""What the trainers ask of the four models, whoever holds their weights: plain PyTorch or DeepSpeed."""

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
from rlhf_cli.engine.shards import ShardReader, write_shards
from rlhf_cli.system.watchdog import PROGRESS

_ADAM_STEP = "adam_step"
_BITS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class StepResult:
    grad_norm: float  # before clipping; not finite where a gradient is not
    skipped: bool  # the weights are left alone when a gradient is not finite
    learning_rate: float  # of the update just made


class Engine(ABC):
    """A model and the place of its weights."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The wrapped module; its parameters may be empty outside `gathered()`."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's forward pass."""

    @abstractmethod
    def gathered(self, hold: bool = True) -> AbstractContextManager[nn.Module]:
        """Hold the full weights on every rank while the body runs, and give them back, also when it raises.

        One gather instead of one a layer and pass; without backward passes ranks may make different numbers of
        forward passes. The body must not step. hold=False leaves everything as it is, for models that do not fit
        whole on one device; so does a body inside another one.
        """

    @abstractmethod
    def _shard(self, parameter: nn.Parameter) -> Tensor:
        """Return this rank's part of a parameter in the training dtype, flat."""

    def fingerprint(self) -> str:
        """Return the sum of the bits of all weights, the same on any number of ranks; other weights have another one.

        All ranks together. It tells accidents: the order of weights is not in it.
        """
        total = torch.zeros((), dtype=torch.int64, device=distributed.device())
        for parameter in self.module.parameters():
            shard = self._shard(parameter)
            total += shard.view(_BITS[shard.element_size()]).sum(dtype=torch.int64).to(total.device)
        return str(int(distributed.global_sum(total)))


class FrozenEngine(Engine):
    """A model that is only read: reference and reward model."""


class TrainEngine(Engine):
    """A model with its optimizer and learning-rate schedule: policy, value model, or a reward model in training.

    num_updates: the updates of the whole run, over which the schedule goes; ema_decay: of a moving average of the
    float32 weights, which is kept in shards as they are.
    """

    def __init__(self, optim: OptimConfig, num_updates: int, ema_decay: float | None, ema_device: torch.device) -> None:
        self._optim, self._num_updates, self._ema_decay, self._ema_device = optim, num_updates, ema_decay, ema_device
        self._num_skipped = 0  # in a row
        weights = [] if ema_decay is None else self.module.named_parameters()
        self._ema = {name: self._master(one).to(ema_device, torch.float32, copy=True) for name, one in weights}

    @property
    @abstractmethod
    def is_whole(self) -> bool:
        """Whether every rank has the full weights at all times."""

    @property
    def has_ema(self) -> bool:
        """Whether a moving average of the weights is kept."""
        return self._ema_decay is not None

    @property
    def num_skipped(self) -> int:
        """Updates skipped in a row until now."""
        return self._num_skipped

    @property
    def num_weights(self) -> int:
        """Weights of the whole model."""
        return sum(self._size(parameter) for parameter in self.module.parameters())

    @property
    def state_bytes(self) -> int:
        """Bytes that `save` writes, of all ranks together: weights, AdamW's two means, the moving average."""
        return saved_bytes(self._optim, self.has_ema) * self.num_weights

    @property
    def export_bytes(self) -> int:
        """Bytes of the whole model in the training dtype, and of its average where there is one."""
        each = max(parameter.element_size() for parameter in self.module.parameters())
        return each * self.num_weights * (1 + self.has_ema)

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of `loss`, this rank's share of a global mean (the shares of all ranks add up to it).

        Passes come in turn: of the model's forward passes with gradients, the one of `loss` is the last.
        """

    @abstractmethod
    def full_state_dict(self) -> dict[str, Tensor]:
        """Collect the full weights on rank 0's CPU, in the training dtype; other ranks take part and get {}."""

    def step(self, update: int) -> StepResult:
        """Reduce and clip the accumulated gradients and update the weights; all ranks together.

        update: the number of the update in the run, from 0, which alone sets the learning rate. Raises NonFiniteError
        once max_skipped_updates in a row were not finite.
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
                f"{self._num_skipped} updates in a row had gradients that are not finite; the weights are those before "
                "them and the last checkpoint is intact: look for broken data or lower the learning rate"
            )

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
        differences = [
            self._real_part(self._master(ours) - other._master(parameter), ours) for ours, parameter in shared
        ]
        return max((float(one.abs().max()) for one in differences if one.numel()), default=0.0)

    def save(self, folder: Path) -> None:
        """Write this rank's shards of weights, optimizer and moving average; no rank waits for another.

        Raises NonFiniteError rather than write a weight that is not finite.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_shards(self._shards(), folder, distributed.rank())

    def _shards(self) -> Iterator[tuple[str, Tensor]]:
        states = list(self._optimizer()[0].state.values())  # none before the first update under ZeRO-3
        for name, parameter in self.module.named_parameters():
            master = self._real_part(self._master(parameter), parameter)
            if not master.isfinite().all():
                raise NonFiniteError(f"the weight {name} is not finite; no checkpoint of it is written")
            yield f"master/{name}", master
            for moment in MOMENTS if states else ():
                yield f"{moment}/{name}", self._real_part(self._moment(parameter, moment), parameter)
            if self.has_ema:
                yield f"ema/{name}", self._real_part(self._ema[name], parameter)
        if states:
            yield _ADAM_STEP, states[0]["step"].reshape(1)

    def load(self, folder: Path, num_skipped: int) -> None:
        """Read back what `save` wrote on any number of ranks; all ranks together."""
        with ShardReader(folder) as reader, self._loading():
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
        """Make AdamW's states, which its first update would make, with moments of 0 and such a count of updates.

        Each has a count of its own: AdamW adds to it in place.
        """
        optimizer, weights = self._optimizer()
        for weight in weights:
            zeros = {moment: torch.zeros_like(weight) for moment in MOMENTS}
            optimizer.state[weight] = {"step": step.clone().to(weight.device), **zeros}

    def _real_part(self, shard: Tensor, parameter: nn.Parameter) -> Tensor:
        """A shard without the elements that fill up the last ranks' shards, which nobody sets."""
        size = shard.numel()
        return shard[: max(0, min(size, self._size(parameter) - distributed.rank() * size))]

    @abstractmethod
    def _update(self, rate: float) -> tuple[float, bool]:
        """Update the weights at a learning rate; return the norm of the gradients, and whether they were finite."""

    @abstractmethod
    def _size(self, parameter: nn.Parameter) -> int:
        """Return the elements of the whole parameter."""

    @abstractmethod
    def _shard_size(self, parameter: nn.Parameter) -> int:
        """Return the elements of this rank's part, what fills it up among them."""

    @abstractmethod
    def _master(self, parameter: nn.Parameter) -> Tensor:
        """Return this rank's part of the weights that the optimizer updates, flat: float32, or optim.state_dtype."""

    @abstractmethod
    def _set_master(self, parameter: nn.Parameter, shard: Tensor) -> None:
        """Set this rank's part of a parameter, in the optimizer's dtype and in the training dtype."""

    @abstractmethod
    def _optimizer(self) -> tuple[torch.optim.AdamW, list[Tensor]]:
        """Return AdamW and the weights, or flat groups of weights, that it updates at a time."""

    @abstractmethod
    def _moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        """Return this rank's part of one of AdamW's MOMENTS, flat."""

    @abstractmethod
    def _set_moment(self, parameter: nn.Parameter, moment: str, shard: Tensor) -> None:
        """Set it."""

    @abstractmethod
    def _loading(self) -> AbstractContextManager[None]:
        """What must be around setting weights and moments."""


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
    """Names and buffers that belong to a module's exported weights."""
    saved = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name in saved:
            yield name, buffer


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
