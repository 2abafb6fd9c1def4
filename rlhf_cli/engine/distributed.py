"""Ranks and their collectives. No other module imports torch.distributed.

A single rank calls no collective, and not only to save time: a gloo thread that copies a large tensor starts its own
OpenMP threads. With more threads than cores, libgomp lets all of them sleep between operations, and decoding, which is
thousands of small operations, takes 1.4 times as long for the rest of the run (torch 2.13, two cores).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_cli.config.errors import InputError, RunError
from rlhf_cli.engine.deepspeed_import import deepspeed, get_accelerator
from rlhf_cli.system.processes import free_port
from rlhf_cli.system.text import one_line

Item = TypeVar("Item")


def initialise(timeout_s: int) -> None:
    """Join the process group that the launcher describes in the environment; without a launcher, be the only rank."""
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())
        )
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    if get_accelerator().device_name() == "cpu":
        # DeepSpeed 0.19.8 would compile an op for inference_all_reduce, which training never calls. This saves a
        # minute and needs no C++ compiler (deepspeed/comm/torch.py, build_shm_op).
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        local_rank, num_devices = int(os.environ["LOCAL_RANK"]), get_accelerator().device_count()
        num_local = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
        if num_local > num_devices:
            raise InputError(
                f"got {num_local} ranks on this machine, which has {num_devices} GPUs; start {num_devices} ranks"
            )
        get_accelerator().set_device(local_rank)
    deepspeed.init_distributed(auto_mpi_discovery=False, timeout=timedelta(seconds=timeout_s), verbose=False)


def shut_down() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this rank, from 0."""
    return dist.get_rank()


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size()


def num_local_ranks() -> int:
    """Return the number of ranks on this machine, from the launcher's variables; by default, all ranks."""
    given = (os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"))
    return int(next((one for one in given if one), "1"))


def device() -> torch.device:
    """Return the device this rank computes on."""
    return torch.device(get_accelerator().current_device_name())


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()


def synchronise() -> None:
    """Wait until this rank's device has finished its queued work."""
    get_accelerator().synchronize()


def broadcast(item: Item) -> Item:
    """Return rank 0's `item` on every rank. Items are pickled, so they must come from this program."""
    if world_size() == 1:
        return item
    box = [item]
    dist.broadcast_object_list(box, src=0, device=device())
    return box[0]


def gather_all(item: Item) -> list[Item]:
    """Return the items of all ranks, in rank order, on every rank. Items are pickled, as in `broadcast`."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def together(action: Callable[[], Item], only_first: bool = False) -> Item:
    """Run an action on every rank and return this rank's result; if one rank fails, all raise its error.

    only_first: only rank 0 runs the action, and all ranks return its result. The action must not call a collective.
    """
    result: Any = None
    failure: Exception | None = None
    if not only_first or rank() == 0:
        try:
            result = action()
        except Exception as error:  # raised again below, on all ranks
            failure = error
    results = gather_all((result if only_first else None, _portable(failure)))
    if failure is not None:
        raise failure
    for _, theirs in results:
        if theirs is not None:
            theirs.second_hand = True
            raise theirs
    return cast(Item, results[0][0] if only_first else result)


def _portable(error: Exception | None) -> RunError | None:
    """Return an error that can be pickled for other ranks."""
    if error is None or isinstance(error, RunError):
        return error
    return RunError(f"rank {rank()}: {type(error).__name__}: {one_line(error, 500)}")


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank; the same on all ranks."""
    return bool(global_sum(torch.tensor(float(flag), device=device())) > 0)


def gather_tensors(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all ranks, which must have one shape, in rank order, on every rank."""
    if world_size() == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return parts


def global_sum(values: Tensor) -> Tensor:
    """Return the elementwise sum of a tensor over the ranks, on every rank."""
    total = values.clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def share(items: list[Item]) -> list[Item]:
    """Return this rank's part of a list whose length is a multiple of the number of ranks."""
    size, remainder = divmod(len(items), world_size())
    assert remainder == 0
    return items[rank() * size :][:size]


def balanced_share(items: list[Item], sizes: list[int]) -> list[Item]:
    """Return this rank's part of a list whose length is a multiple of the number of ranks, smallest items first.

    Every rank gets the same number of items and a similar mix of sizes: items are sorted by size and assigned to ranks
    0, 1, ..., n - 1, n - 1, ..., 1, 0, and so on.
    """
    order = sorted(range(len(items)), key=lambda index: (sizes[index], index))
    own = []
    for turn, start in enumerate(range(0, len(order), world_size())):
        indices = order[start : start + world_size()]
        assert len(indices) == world_size()
        own.append(indices[rank() if turn % 2 == 0 else -1 - rank()])
    return [items[index] for index in own]


def pad_to_same_count(parts: list[Item]) -> list[tuple[Item, bool]]:
    """Return (part, is_real) pairs; the first part is repeated as not real until every rank has the same number.

    Under ZeRO-3 a forward pass is a collective, so all ranks must run the same number of them.
    """
    longest = max(gather_all(len(parts)))
    return [(part, True) for part in parts] + [(parts[0], False)] * (longest - len(parts))


def pad_to_ranks(items: list[Item]) -> list[Item]:
    """Repeat the first item until the length is a multiple of the number of ranks."""
    return items + items[:1] * (-len(items) % world_size())
