"""Ranks and what they exchange. Nothing else in the package imports torch.distributed."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from rlhf_cli.config.errors import InputError
from rlhf_cli.engine.ports import free_port

Item = TypeVar("Item")


def initialise(timeout_s: int) -> None:
    """Join the process group a launcher described in the environment; without one, be the only rank."""
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())
        )
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    if get_accelerator().device_name() == "cpu":
        # DeepSpeed 0.19.8 would compile an op for inference_all_reduce, which training never calls: a minute and a
        # C++ compiler saved (deepspeed/comm/torch.py, build_shm_op).
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        local_rank, num_devices = int(os.environ["LOCAL_RANK"]), get_accelerator().device_count()
        num_local = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
        if num_local > num_devices:
            raise InputError(f"{num_local} ranks on this machine, which has {num_devices} GPUs; start {num_devices}")
        get_accelerator().set_device(local_rank)
    deepspeed.init_distributed(auto_mpi_discovery=False, timeout=timedelta(seconds=timeout_s), verbose=False)


def shut_down() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number among `world_size()`."""
    return dist.get_rank()


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size()


def device() -> torch.device:
    """The device this rank computes on."""
    return torch.device(get_accelerator().current_device_name())


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()


def broadcast(item: Item) -> Item:
    """Return rank 0's `item` on every rank. Items are pickled: own objects only."""
    box = [item]
    dist.broadcast_object_list(box, src=0, device=device())
    return box[0]


def gather_all(item: Item) -> list[Item]:
    """Return every rank's `item`, in the order of ranks, on every rank. Items are pickled: own objects only."""
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def gather_tensors(tensor: Tensor) -> list[Tensor]:
    """Return every rank's tensor, all of one shape, in the order of ranks, on every rank."""
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return parts


def global_sum(values: Tensor) -> Tensor:
    """Sum a tensor over the ranks, element by element; all get the result."""
    total = values.clone()
    dist.all_reduce(total)
    return total


def share(items: list[Item]) -> list[Item]:
    """Return this rank's part of a list whose length is a multiple of the number of ranks."""
    size, remainder = divmod(len(items), world_size())
    assert remainder == 0
    return items[rank() * size :][:size]


def evened(parts: list[Item]) -> list[tuple[Item, bool]]:
    """Mark each part as real, and repeat the first one, not real, until every rank has as many.

    Under ZeRO-3 a forward pass is a collective: all ranks must make the same number of them.
    """
    longest = max(gather_all(len(parts)))
    return [(part, True) for part in parts] + [(parts[0], False)] * (longest - len(parts))


def pad_to_ranks(items: list[Item]) -> list[Item]:
    """Repeat the first item until the length is a multiple of the number of ranks."""
    return items + items[:1] * (-len(items) % world_size())


def peak_memory_gib() -> float:
    """Peak memory of this process in GiB: allocated on the GPU, or resident where there is none."""
    if get_accelerator().device_name() == "cpu":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return float(get_accelerator().max_memory_allocated()) / 2**30
