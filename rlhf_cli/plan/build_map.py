"""From a configuration to its memory map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.plan.memory_map import MemoryMap, Place
from rlhf_cli.plan.phases import Config, Lengths
from rlhf_cli.plan.ppo_memory import PPORun
from rlhf_cli.plan.reward_memory import RewardRun
from rlhf_cli.plan.trace_memory import ACTIVATIONS, LOGITS


def memory_map(config: Config, place: Place, lengths: Lengths | None = None, num_steps: int | None = None) -> MemoryMap:
    """Return the map of a run.

    lengths: of the data, num_steps: of a reward-model run, where they are known. Raises InputError for a model whose
    shape cannot be found.
    """
    lengths = lengths or Lengths.allowed(config)
    if isinstance(config, TrainPPOConfig):
        return PPORun(config, place, lengths).map()
    return RewardRun(config, place, lengths, num_steps).map()


def with_shapes(config: Config) -> tuple[Config, list[str]]:
    """Return a configuration whose models have a shape, with notes on what was assumed.

    A reward model that is not trained yet is taken to have the policy's shape.
    """
    if not isinstance(config, TrainPPOConfig) or config.reward_model.path is None:
        return config, []
    path = config.reward_model.path
    of_a_run = path.count("/") > 1 or path.split("/")[0] == config.run.output_dir  # else it is a Hub id
    if path.startswith("pkg://") or not of_a_run or Path(path).expanduser().exists():
        return config, []
    note = f"reward_model.path={path} is not there yet: planned with the policy's shape"
    return replace(config, reward_model=replace(config.model, dtype=config.reward_model.dtype)), [note]


def update_activations(config: Config, place: Place) -> tuple[int, int]:
    """Return the bytes that the largest pass with gradients holds, without and with gradient checkpointing."""
    found = []
    for checkpointing in (False, True):
        changed = replace(config, model=replace(config.model, gradient_checkpointing=checkpointing))
        moments = memory_map(changed, place).moments
        items = [one.device for one in moments if one.phase == "update"]
        kinds = (ACTIVATIONS, LOGITS)
        found.append(max(sum(item.bytes for item in held if item.what in kinds) for held in items))
    return found[0], found[1]
