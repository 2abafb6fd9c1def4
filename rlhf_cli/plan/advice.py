"""Find options that make a run fit or make it faster, by planning the run with each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.config.sections import DType
from rlhf_cli.config.zero_settings import ZeroSettings
from rlhf_cli.plan.memory_map import MemoryMap
from rlhf_cli.plan.phases import Config

Fits = Callable[[Config], MemoryMap | None]  # the map of a configuration if it fits
_MOST_TRIED = 300  # combinations


@dataclass(frozen=True)
class Change:
    """Options set to other values."""

    options: dict[str, Any]  # `deepspeed` names one of the packaged configurations
    effect: str  # on speed, or what else is lost
    cost: float = 0.0  # to choose by: about the share by which a step takes longer

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options as arguments of the command line."""
        return tuple(f"{key}={_text(value)}" for key, value in self.options.items())

    def apply(self, config: Config) -> Config:
        """Return the changed configuration. Raises InputError if a value is not allowed."""
        for key, value in self.options.items():
            section, _, name = key.partition(".")
            if key == "deepspeed":  # keys that were added to the section stay
                text = (files("rlhf_cli.conf") / "deepspeed" / f"{value}.yaml").read_text("utf-8")
                changed: Any = OmegaConf.to_container(OmegaConf.merge(config.deepspeed, OmegaConf.create(text)))
            else:
                changed = replace(getattr(config, section), **{name: value})
            config = replace(config, **{section: changed})
        return config


@dataclass(frozen=True)
class Suggestion:
    """Changes that make a run fit together, and its memory map with them."""

    changes: tuple[Change, ...]
    memory: MemoryMap

    @property
    def arguments(self) -> tuple[str, ...]:
        """All changed options as arguments of the command line."""
        return tuple(argument for change in self.changes for argument in change.arguments)


@dataclass(frozen=True)
class _Switch:
    """An option that trades memory for speed."""

    key: str
    saving: bool  # the value that saves memory
    effect: str
    cost: float
    gain: str  # of the other value


_LAYER_BY_LAYER = "each pass of an update gathers weights layer by layer"
_SWITCHES = (
    _Switch("model.gradient_checkpointing", True, "updates take about 1/3 longer", 0.2, "updates take about 1/4 less"),
    _Switch("ppo.offload_frozen", True, "adds a few seconds per step at 7B", 0.05, "saves a few seconds per step"),
    _Switch("rollout.gather", False, "rollouts become many times slower", 5.0, "one gather per rollout"),
    _Switch("ppo.gather", False, _LAYER_BY_LAYER, 0.4, "one gather per update"),
    _Switch("train.gather", False, _LAYER_BY_LAYER, 0.4, "one gather per update"),
)


def to_fit(config: Config, num_ranks: int, fits: Fits) -> list[Suggestion]:
    """Return the single changes that make a run fit, cheapest first; else one combination."""
    options = _savings(config, num_ranks)
    single = (filter(None, (_try(config, (change,), num_ranks, fits) for change in changes)) for changes in options)
    found = [suggestion for fitting in single for suggestion in itertools.islice(fitting, 1)]  # the mildest of each
    if found:
        return sorted(found, key=lambda suggestion: suggestion.changes[0].cost)
    combinations = (tuple(filter(None, choice)) for choice in itertools.product(*([None, *some] for some in options)))
    ordered = sorted((one for one in combinations if len(one) > 1), key=lambda one: sum(change.cost for change in one))
    strongest = [changes[-1] for changes in options]
    # last resort: the strongest change of all options but one, because some exclude each other
    last = (tuple(change for change in strongest if change is not left_out) for left_out in reversed(strongest))
    tried = (_try(config, changes, num_ranks, fits) for changes in (*ordered[:_MOST_TRIED], *last))
    return list(itertools.islice(filter(None, tried), 1))


def to_speed_up(config: Config, num_ranks: int, fits: Fits) -> list[Suggestion]:
    """Return each single change that makes a run faster and still fits."""
    found = []
    for changes in _speedups(config, num_ranks):
        fitting = [one for one in (_try(config, (change,), num_ranks, fits) for change in changes) if one is not None]
        if fitting:  # the mildest of those that need as much memory as the strongest
            most = fitting[-1].memory.running_peak
            found.append(next(one for one in fitting if one.memory.running_peak == most))
    return found


def savings(config: Config, num_ranks: int, plan: Callable[[Config], MemoryMap]) -> list[tuple[Change, int]]:
    """Return the mildest change of each option, with the bytes per GPU that it saves in a step.

    The largest savings come first; options that save nothing are left out.
    """
    now = plan(config).running_peak
    found = []
    for mildest, *_ in _savings(config, num_ranks):
        tried = _try(config, (mildest,), num_ranks, plan)
        if tried is not None and tried.memory.running_peak < now:
            found.append((mildest, now - tried.memory.running_peak))
    return sorted(found, key=lambda one: -one[1])


def _try(config: Config, changes: tuple[Change, ...], num_ranks: int, fits: Fits) -> Suggestion | None:
    try:
        for change in changes:
            config = change.apply(config)
        config.check_together()
        config.check_ranks(num_ranks)
        memory = fits(config)
    except InputError:  # options that exclude each other
        return None
    return None if memory is None else Suggestion(changes, memory)


def _switches(config: Config, saves: bool) -> Iterator[_Switch]:
    """Return the switches that can still be set to save memory, or not to save it."""
    for switch in _SWITCHES:
        section, _, name = switch.key.partition(".")
        if hasattr(config, section) and (getattr(getattr(config, section), name) is switch.saving) is not saves:
            yield switch


def _savings(config: Config, num_ranks: int) -> list[list[Change]]:
    """Return the changes of each option that saves memory, mildest first."""
    is_ppo, zero = isinstance(config, TrainPPOConfig), ZeroSettings.of(config.deepspeed)
    found = [_halved(config, "ppo" if is_ppo else "train", num_ranks, "updates take a few percent longer", 0.03)]
    found += [[Change({one.key: one.saving}, one.effect, one.cost)] for one in _switches(config, saves=True)]
    if isinstance(config, TrainPPOConfig):
        found.append(_halved(config, "rollout", num_ranks, "rollouts take up to twice as long per halving", 0.15))
        if config.ppo.may_reuse_forward(weights_are_whole=True):
            effect = "one more forward pass of the policy per step: a few percent"
            found.append([Change({"ppo.reuse_forward": False}, effect, 0.08)])
    else:
        key, sizes = "train.eval_micro_batch_size", _halvings(config.train.eval_micro_batch_size)
        found.append([Change({key: size}, "only evaluations are slower", 0.01) for size in sizes])
    offloads = []
    if not zero.offload_optimizer:
        effect = "the optimizer step runs on the CPU and moves 12 bytes per trained weight in each update"
        offloads.append(Change({"deepspeed": "zero3_offload_optimizer"}, effect, 0.6))
    if not zero.offload_param:
        effect = "each pass copies weights to the GPU, and the optimizer step runs on the CPU"
        offloads.append(Change({"deepspeed": "zero3_offload"}, effect, 1.2))
    found.append(offloads)
    if config.optim.state_dtype is DType.float32 and config.model.dtype is DType.bfloat16:
        optims = ("optim", "value_optim") if is_ppo else ("optim",)
        options = {f"{name}.state_dtype": DType.bfloat16 for name in optims}
        found.append([Change(options, "no slower, but small updates are lost to rounding", 2.0)])
    return [changes for changes in found if changes]


def _speedups(config: Config, num_ranks: int) -> Iterator[list[Change]]:
    """Return the changes of each option that makes a run faster, mildest first."""
    is_ppo = isinstance(config, TrainPPOConfig)
    yield _doubled(config, "ppo" if is_ppo else "train", num_ranks, "larger matrix products")
    if is_ppo:
        yield _doubled(config, "rollout", num_ranks, "more rows per decoding step")
    for switch in _switches(config, saves=False):
        if num_ranks > 1 or not switch.key.endswith(".gather"):
            yield [Change({switch.key: not switch.saving}, switch.gain)]


def _micro_batch(config: Config, section: str, num_ranks: int) -> tuple[str, int, int]:
    """Return the key of a section's micro-batch, its value, and the largest value of any use."""
    options: Any = getattr(config, section)
    if options.micro_batch_tokens is not None:
        return f"{section}.micro_batch_tokens", options.micro_batch_tokens, 16 * options.micro_batch_tokens
    batch = config.ppo if isinstance(config, TrainPPOConfig) else config.train
    most = options.minibatch_size if section == "ppo" else batch.batch_size
    return f"{section}.micro_batch_size", options.micro_batch_size, most // num_ranks


def _halvings(size: int) -> list[int]:
    return [size >> power for power in range(1, min(9, size.bit_length()))]


def _halved(config: Config, section: str, num_ranks: int, effect: str, cost: float) -> list[Change]:
    key, size, most = _micro_batch(config, section, num_ranks)
    return [Change({key: half}, effect, cost * times) for times, half in enumerate(_halvings(min(size, most)), start=1)]


def _doubled(config: Config, section: str, num_ranks: int, gain: str) -> list[Change]:
    key, size, most = _micro_batch(config, section, num_ranks)
    doubles = dict.fromkeys(min(size << power, most) for power in range(1, 9) if size < most)
    return [Change({key: double}, gain) for double in doubles]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else value.name if isinstance(value, DType) else str(value)
