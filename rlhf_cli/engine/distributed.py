"""Ranks and what they exchange. Nothing else in the package imports torch.distributed.

One rank exchanges nothing. That is more than thrift: a thread of gloo's that copies a large tensor becomes the master
of OpenMP threads of its own; more threads than cores then make all of them sleep between two operations (libgomp), and
decoding, which is thousands of small ones, takes 1.4 times as long for the rest of the run (torch 2.13, two cores).
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
from rlhf_cli.system.ports import free_port
from rlhf_cli.system.text import one_line

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


def num_local_ranks() -> int:
    """The ranks on this machine, as torchrun, deepspeed or `rlhf` say; all of them where nobody says."""
    given = (os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"))
    return int(next((one for one in given if one), "1"))


def device() -> torch.device:
    """The device this rank computes on."""
    return torch.device(get_accelerator().current_device_name())


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()


def synchronise() -> None:
    """Wait until this rank's device has done what it was told."""
    get_accelerator().synchronize()


def broadcast(item: Item) -> Item:
    """Return rank 0's `item` on every rank. Items are pickled: own objects only."""
    if world_size() == 1:
        return item
    box = [item]
    dist.broadcast_object_list(box, src=0, device=device())
    return box[0]


def gather_all(item: Item) -> list[Item]:
    """Return every rank's `item`, in the order of ranks, on every rank. Items are pickled: own objects only."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def together(action: Callable[[], Item], only_first: bool = False) -> Item:
    """Carry out an action on every rank and return what it gave this one; where one rank fails, all raise its error.

    only_first: rank 0 alone acts, and its result is every rank's. An action must not be a collective itself.
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
    """An error that can be pickled for other ranks."""
    if error is None or isinstance(error, RunError):
        return error
    return RunError(f"rank {rank()}: {type(error).__name__}: {one_line(error, 500)}")


def any_rank(flag: bool) -> bool:
    """Say whether the flag is set on at least one rank; all get the same answer."""
    return bool(global_sum(torch.tensor(float(flag), device=device())) > 0)


def gather_tensors(tensor: Tensor) -> list[Tensor]:
    """Return every rank's tensor, all of one shape, in the order of ranks, on every rank."""
    if world_size() == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return parts


def global_sum(values: Tensor) -> Tensor:
    """Sum a tensor over the ranks, element by element; all get the result."""
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
    """Return this rank's part of a list whose length is a multiple of the number of ranks, by size, smallest first.

    Every rank gets as many items, and of each size nearly as many: they are dealt out by size, there and back.
    """
    order = sorted(range(len(items)), key=lambda place: (sizes[place], place))
    mine = []
    for number, turn in enumerate(range(0, len(order), world_size())):
        dealt = order[turn : turn + world_size()]
        assert len(dealt) == world_size()
        mine.append(dealt[rank() if number % 2 == 0 else -1 - rank()])
    return [items[place] for place in mine]


def pad_to_same_count(parts: list[Item]) -> list[tuple[Item, bool]]:
    """Mark each part as real, and repeat the first one, not real, until every rank has as many.

    Under ZeRO-3 a forward pass is a collective: all ranks must make the same number of them.
    """
    longest = max(gather_all(len(parts)))
    return [(part, True) for part in parts] + [(parts[0], False)] * (longest - len(parts))


def pad_to_ranks(items: list[Item]) -> list[Item]:
    """Repeat the first item until the length is a multiple of the number of ranks."""
    return items + items[:1] * (-len(items) % world_size())
