"""Which options make a run fit, found by trying them; and which make use of room that is left."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from typing import Any, TypeVar

from omegaconf import OmegaConf

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.config.sections import DType
from rlhf_cli.config.zero_settings import ZeroSettings
from rlhf_cli.plan.memory_map import MemoryMap

Config = TrainPPOConfig | TrainRMConfig
Fits = Callable[[Config], MemoryMap | None]  # the map of a configuration that fits, else None
Section = TypeVar("Section")
_MOST_TRIED = 300
_LAYERWISE = "updates fetch weights layer by layer, in every pass"


@dataclass(frozen=True)
class Change:
    """One option set to another value."""

    words: tuple[str, ...]  # to paste into the command line
    cost: str  # in time, or what else is lost
    weight: float  # of that cost, to choose by: about the share by which a step takes longer
    change: Callable[[Config], Config]


@dataclass(frozen=True)
class Suggestion:
    """Changes that together make a run fit."""

    words: tuple[str, ...]
    costs: tuple[str, ...]
    found: MemoryMap


def to_fit(config: Config, num_ranks: int, fits: Fits) -> list[Suggestion]:
    """Return the cheapest single changes that make a run fit, each for itself; where there is none, a combination."""
    levers = list(_levers(config, num_ranks))
    alone = []
    for lever in levers:
        one = next(filter(None, (_tried(config, (change,), fits) for change in lever)), None)
        if one is not None:
            alone.append((one[1], one[0]))
    if alone:
        return [suggestion for _, suggestion in sorted(alone, key=lambda pair: pair[0])]
    choices = [(None, *lever) for lever in levers]
    combinations = [tuple(filter(None, some)) for some in itertools.product(*choices)]
    ordered = sorted((one for one in combinations if len(one) > 1), key=lambda one: sum(part.weight for part in one))
    strongest = [lever[-1] for lever in levers]
    # where the cheap ones are not enough: everything at its strongest but one option, for some exclude each other
    last = [tuple(change for change in strongest if change is not left_out) for left_out in reversed(strongest)]
    for combination in (*ordered[:_MOST_TRIED], *last):
        found = _tried(config, combination, fits)
        if found is not None:
            return [found[0]]
    return []


def to_use_room(config: Config, num_ranks: int, fits: Fits) -> list[Suggestion]:
    """Return changes that make a run faster and still fit, each for itself."""
    found = []
    for lever in _gains(config, num_ranks):
        fitting = [one[0] for one in (_tried(config, (change,), fits) for change in lever) if one is not None]
        if fitting:  # the mildest of those that use as much as the strongest
            most = fitting[-1].found.running_peak
            found.append(next(one for one in fitting if one.found.running_peak == most))
    return found


def _tried(config: Config, changes: tuple[Change, ...], fits: Fits) -> tuple[Suggestion, float] | None:
    try:
        changed = config
        for one in changes:
            changed = one.change(changed)
        changed.check_together()
        found = fits(changed)
    except InputError:  # options that exclude each other
        return None
    if found is None:
        return None
    words = tuple(word for one in changes for word in one.words)
    return Suggestion(words, tuple(one.cost for one in changes), found), sum(one.weight for one in changes)


def savings(config: Config, num_ranks: int, plan: Callable[[Config], MemoryMap]) -> list[tuple[Change, int]]:
    """Return for every option that saves memory its mildest change, and the bytes a GPU that it saves in a step's peak.

    Those that save nothing are left out; the largest savings come first.
    """
    now = plan(config).running_peak
    found = []
    for lever in _levers(config, num_ranks):
        try:
            changed = lever[0].change(config)
            changed.check_together()
            changed.check_ranks(num_ranks)
            found.append((lever[0], now - plan(changed).running_peak))
        except InputError:  # options that exclude each other
            continue
    return sorted((one for one in found if one[1] > 0), key=lambda one: -one[1])


def _levers(config: Config, num_ranks: int) -> Iterator[list[Change]]:
    """For every option that saves memory its values, from the mildest to the strongest."""
    section = "ppo" if isinstance(config, TrainPPOConfig) else "train"
    candidates = [_halved(config, section, num_ranks, "smaller products: some per cent", 0.03)]
    if not config.model.gradient_checkpointing:
        candidates.append([_set({"model.gradient_checkpointing": True}, "updates take about a third longer", 0.2)])
    candidates += _of_ppo(config, num_ranks) if isinstance(config, TrainPPOConfig) else []
    candidates += _of_reward(config) if isinstance(config, TrainRMConfig) else []
    candidates.append(_offloads(ZeroSettings.of(config.deepspeed)))
    optims = ("optim", "value_optim") if isinstance(config, TrainPPOConfig) else ("optim",)
    if config.optim.state_dtype is DType.float32 and config.model.dtype is DType.bfloat16:
        changes = {f"{name}.state_dtype": DType.bfloat16 for name in optims}
        candidates.append([_set(changes, "no time, but small updates are rounded away", 2.0)])
    yield from filter(None, candidates)


def _of_ppo(config: TrainPPOConfig, num_ranks: int) -> list[list[Change]]:
    found = [_halved(config, "rollout", num_ranks, "rollouts take longer, up to twice as long for each half", 0.15)]
    if config.ppo.reuse_forward and config.ppo.minibatch_size == config.ppo.batch_size:
        found.append([_set({"ppo.reuse_forward": False}, "one more forward pass of the policy: some per cent", 0.08)])
    if not config.ppo.offload_frozen:
        cost = "reference and reward model come through PCIe once a step: some seconds at 7B"
        found.append([_set({"ppo.offload_frozen": True}, cost, 0.05)])
    if config.rollout.gather:
        slow = "rollouts fetch weights for every token: many times slower"
        found.append([_set({"rollout.gather": False}, slow, 5.0)])
    if config.ppo.gather:
        found.append([_set({"ppo.gather": False}, _LAYERWISE, 0.4)])
    return found


def _of_reward(config: TrainRMConfig) -> list[list[Change]]:
    size, halves = config.train.eval_micro_batch_size, []
    while size > 1:
        size //= 2
        halves.append(_set({"train.eval_micro_batch_size": size}, "evaluations alone", 0.01))
    return [halves, [_set({"train.gather": False}, _LAYERWISE, 0.4)] if config.train.gather else []]


def _offloads(zero: ZeroSettings) -> list[Change]:
    found = []
    if not zero.offload_optimizer:
        cost = "the optimizer's step runs on the host: 12 bytes a trained weight through its memory, each update"
        found.append(_group("zero3_offload_optimizer", cost, 0.6))
    if not zero.offload_param:
        cost = "weights come through PCIe in every pass, the optimizer's step runs on the host"
        found.append(_group("zero3_offload", cost, 1.2))
    return found


def _gains(config: Config, num_ranks: int) -> Iterator[list[Change]]:
    """For every option that takes memory for speed its values, from the mildest to the strongest."""
    section = "ppo" if isinstance(config, TrainPPOConfig) else "train"
    if config.model.gradient_checkpointing:
        yield [_set({"model.gradient_checkpointing": False}, "updates take about a quarter less", 0.0)]
    yield _doubled(config, section, num_ranks, "larger products")
    if isinstance(config, TrainPPOConfig):
        yield _doubled(config, "rollout", num_ranks, "more rows a decoding step")
        if config.ppo.offload_frozen:
            yield [_set({"ppo.offload_frozen": False}, "some seconds a step less", 0.0)]
        if not config.ppo.gather and num_ranks > 1:
            yield [_set({"ppo.gather": True}, "weights are fetched once an update", 0.0)]
        if not config.rollout.gather and num_ranks > 1:
            yield [_set({"rollout.gather": True}, "weights are fetched once a rollout", 0.0)]
    elif not config.train.gather and num_ranks > 1:
        yield [_set({"train.gather": True}, "weights are fetched once an update", 0.0)]


def _size(config: Config, section: str, num_ranks: int) -> tuple[str, int, int]:
    """The key of a section's micro-batch, its value, and the most that makes a difference."""
    options: Any = getattr(config, section)
    if options.micro_batch_tokens is not None:
        return f"{section}.micro_batch_tokens", options.micro_batch_tokens, 16 * options.micro_batch_tokens
    if isinstance(config, TrainPPOConfig):
        most = config.ppo.batch_size if section == "rollout" else config.ppo.minibatch_size
    else:
        most = config.train.batch_size
    return f"{section}.micro_batch_size", options.micro_batch_size, most // num_ranks


def _halved(config: Config, section: str, num_ranks: int, cost: str, weight: float) -> list[Change]:
    key, size, most = _size(config, section, num_ranks)
    size = min(size, most)
    halves: list[Change] = []
    while size > 1 and len(halves) < 8:
        size //= 2
        halves.append(_set({key: size}, cost, weight * (len(halves) + 1)))
    return halves


def _doubled(config: Config, section: str, num_ranks: int, gain: str) -> list[Change]:
    key, size, most = _size(config, section, num_ranks)
    doubles: list[Change] = []
    while size < most and len(doubles) < 8:
        size = min(2 * size, most)
        doubles.append(_set({key: size}, gain, 0.0))
    return doubles


def _set(values: dict[str, Any], cost: str, weight: float) -> Change:
    """Set options of the schema."""

    def change(config: Config) -> Config:
        for key, value in values.items():
            section, _, name = key.partition(".")
            config = replace(config, **{section: replaced(getattr(config, section), name, value)})
        return config

    return Change(tuple(f"{key}={_word(value)}" for key, value in values.items()), cost, weight, change)


def _group(name: str, cost: str, weight: float) -> Change:
    """Take another of the packaged DeepSpeed configurations; keys that were added to the section stay."""
    text = (files("rlhf_cli.conf") / "deepspeed" / f"{name}.yaml").read_text("utf-8")

    def change(config: Config) -> Config:
        merged: Any = OmegaConf.to_container(OmegaConf.merge(config.deepspeed, OmegaConf.create(text)))
        return replace(config, deepspeed=merged)

    return Change((f"deepspeed={name}",), cost, weight, change)


def replaced(section: Section, name: str, value: Any) -> Section:
    """Return a section with one option changed; its checks run again."""
    given: dict[str, Any] = {field.name: getattr(section, field.name) for field in fields(section)}  # type: ignore[arg-type]
    return type(section)(**{**given, name: value})


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else value.name if isinstance(value, DType) else str(value)
