"""Engines in plain torch for unit tests of the trainers: one process, no sharding.

They are independent of rlhf_cli/engine/plain.py, which is tested against them: gradients stay where
autograd puts them, torch clips them, and AdamW is not fused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_cli.config.sections import OptimConfig
from rlhf_cli.engine.base import StepResult, learning_rate


class SimpleFrozen:
    def __init__(self, module: nn.Module) -> None:
        self.module = module.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, **places: Tensor) -> Any:
        return self.module(input_ids, **places)

    @contextmanager
    def gathered(self, enabled: bool = True) -> Iterator[nn.Module]:
        yield self.module


class SimpleTrain:
    has_full_weights = True

    def __init__(self, module: nn.Module, optim: OptimConfig, num_updates: int, ema_decay: float | None = None) -> None:
        self.module = module.train()
        self.optim, self.num_updates, self.ema_decay = optim, num_updates, ema_decay
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=optim.learning_rate,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
        )

    def __call__(self, input_ids: Tensor, **places: Tensor) -> Any:
        return self.module(input_ids, **places)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    @torch.no_grad()
    def step(self, update: int) -> StepResult:
        rate = learning_rate(self.optim, update, self.num_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), self.optim.max_grad_norm or 1e30))
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema_decay is not None:
            for name, p in self.module.named_parameters():
                self.average[name].lerp_(p, 1 - self.ema_decay)
        return StepResult(norm, False, rate)

    @contextmanager
    def gathered(self, enabled: bool = True) -> Iterator[nn.Module]:
        yield self.module

    def largest_difference(self, other: SimpleTrain) -> float:
        theirs = dict(other.module.named_parameters())
        shared = [(p, theirs[name]) for name, p in self.module.named_parameters() if name in theirs]
        return max(float((ours - p).detach().abs().max()) for ours, p in shared)

    def full_state_dict(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.module.named_parameters()}

    def full_ema(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**state, **self.average}
