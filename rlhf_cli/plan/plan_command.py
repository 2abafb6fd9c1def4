"""`rlhf plan`: show a run's memory plan as a drawing, a table of several runs, or JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlhf_cli.config.compose import load
from rlhf_cli.config.errors import InputError, OutOfMemoryError
from rlhf_cli.config.schema import COMMANDS, TrainPPOConfig
from rlhf_cli.plan.advice import Suggestion, to_fit, to_speed_up
from rlhf_cli.plan.fit import Fit, fit, memory_map, ranks_text
from rlhf_cli.plan.machine import Machine
from rlhf_cli.plan.memory_map import MemoryMap, Topology, gib
from rlhf_cli.plan.phases import Config
from rlhf_cli.plan.render import bars, peak_table
from rlhf_cli.plan.trace_memory import ACTIVATIONS, LOGITS
from rlhf_cli.report.run_dir import run_folder
from rlhf_cli.system.terminal import console

USAGE = """\
usage: rlhf plan train-ppo|train-rm [conf=NAME | conf=FILE.yaml] [key=value ...] [--json]
                                    [--sweep key=value,value,...] [--max-model]

Estimate the memory and disk space that a run needs in each phase, say whether it fits, and suggest what to change.
This loads no weights and needs no GPU. All texts count as long as the options allow (data.max_prompt_tokens,
rollout.max_new_tokens, data.max_tokens). Exit code 0: the run fits; 7: it does not.

  plan.gpus=4 plan.gpu_memory=80GiB plan.host_memory=512GiB   plan for another machine than this one
  --sweep gpus=2,4,8    compare several values of an option in a table; works with any option
  --max-model           find the largest policy that fits; the other models get the same shape
  --json                print everything as JSON, in bytes
"""
_MORE_GPUS = (1, 2, 4, 8, 16, 32, 64)
# Llama shapes: hidden size, layers, heads, key-value heads, MLP size, vocabulary, tied head
_SHAPES = {
    "0.1B": (576, 30, 9, 3, 1536, 49152, True),
    "0.4B": (960, 32, 15, 5, 2560, 49152, False),
    "0.5B": (896, 24, 14, 2, 4864, 151936, True),
    "1B": (2048, 16, 32, 8, 8192, 128256, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "3B": (3072, 28, 24, 8, 8192, 128256, False),
    "7B": (4096, 32, 32, 32, 11008, 32000, False),
    "8B": (4096, 32, 32, 8, 14336, 128256, False),
    "13B": (5120, 40, 40, 40, 13824, 32000, False),
    "14B": (5120, 48, 40, 8, 13824, 152064, False),
    "32B": (5120, 64, 40, 8, 27648, 152064, False),
    "70B": (8192, 80, 64, 8, 28672, 128256, False),
}
_SHAPE_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("vocab_size", "tie_word_embeddings"),
)


def show(args: list[str]) -> int:
    """Run `rlhf plan`; return the exit code."""
    if "--help" in args or "-h" in args:
        print(USAGE, end="")
        return 0
    options = _parse(args)
    shown = console(highlight=False)
    if options.sweep is not None:
        return _sweep(options, shown)
    config, notes = _with_known_shapes(load(options.command, options.overrides))
    if options.max_model:
        return _max_model(config, options.json, shown)
    planned = _plan(config)
    if not planned.memory.topology.on_gpu:
        notes.append("no GPU here: planned for ranks in host memory; set plan.gpu_memory=80GiB to plan for GPUs")
    suggestions = _advice(config, planned)
    if options.json:
        found = [
            {
                "options": one.arguments,
                "effects": [change.effect for change in one.changes],
                "peak": one.memory.gpu_bytes(),
            }
            for one in suggestions
        ]
        print(json.dumps({**planned.as_json(), "notes": notes, "suggestions": found}, indent=2))
    else:
        _print_lines(shown, [*notes, *planned.batches.lines, ""])
        shown.print(bars(planned.memory, planned.limit, shown.width), end="\n\n")
        shown.print(peak_table(planned.memory), soft_wrap=True)
        _print_lines(shown, ["", *_summary(config, planned), *_advice_lines(config, planned, suggestions)])
    return OutOfMemoryError.code if planned.misfits else 0


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--json", action="store_true")
    several = parser.add_mutually_exclusive_group()
    several.add_argument("--max-model", action="store_true")
    several.add_argument("--sweep")
    if not args or args[0] not in COMMANDS:
        raise InputError(f"rlhf plan needs a command ({' or '.join(COMMANDS)}), got {args[0] if args else 'none'}")
    try:
        options, overrides = parser.parse_known_args(args[1:], argparse.Namespace(command=args[0]))
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    options.overrides = overrides
    return options


def _with_known_shapes(config: Config) -> tuple[Config, list[str]]:
    """Return a configuration whose models all have a shape, with notes on what was assumed.

    A reward model that is not trained yet gets the policy's shape.
    """
    if not isinstance(config, TrainPPOConfig) or config.reward_model.path is None:
        return config, []
    path = config.reward_model.path
    is_file = path.count("/") > 1 or path.split("/")[0] == config.run.output_dir  # otherwise it is a Hub id
    if path.startswith("pkg://") or not is_file or Path(path).expanduser().exists():
        return config, []
    note = f"reward_model.path={path} does not exist yet: planned with the policy's shape"
    return replace(config, reward_model=replace(config.model, dtype=config.reward_model.dtype)), [note]


def _plan(config: Config) -> Fit:
    machine = Machine.here(run_folder(config.run)).planned(config.plan)
    num_ranks = config.plan.gpus or config.launch.num_gpus
    return fit(config, _topology(config, num_ranks, machine.gpu is not None), machine)


def _topology(config: Config, num_ranks: int, on_gpu: bool) -> Topology:
    ranks_per_node = min(config.plan.gpus_per_node or num_ranks, num_ranks)
    if num_ranks % ranks_per_node:
        raise InputError(f"plan.gpus must be a multiple of plan.gpus_per_node {ranks_per_node}, got {num_ranks}")
    return Topology(num_ranks, ranks_per_node, on_gpu)


def _advice(config: Config, planned: Fit) -> list[Suggestion]:
    topology = planned.memory.topology
    if planned.spare is None:
        return []

    def fits(changed: Config) -> MemoryMap | None:
        tried = fit(changed, topology, planned.machine)
        return None if tried.misfits else tried.memory

    return (to_fit if planned.misfits else to_speed_up)(config, topology.num_ranks, fits)


def _more_gpus(config: Config, planned: Fit) -> int | None:
    """Return the smallest larger number of GPUs on which the run fits without changes."""
    topology = planned.memory.topology
    for count in _MORE_GPUS:
        try:
            if count > topology.num_ranks:
                more = _topology(config, count, topology.on_gpu)
                if not fit(config, more, planned.machine).misfits:
                    return count
        except InputError:  # a batch or a machine that cannot be divided
            continue
    return None


def _summary(config: Config, planned: Fit) -> list[str]:
    memory, machine, topology = planned.memory, planned.machine, planned.memory.topology
    without, recomputed = _update_activations(config, topology)
    is_on = "on" if config.model.gradient_checkpointing else "off"
    libraries = "" if topology.on_gpu else ", tensors and libraries"
    host = memory.host_peak()
    lines = [
        f"activations of an update: {gib(without)} without gradient checkpointing, {gib(recomputed)} with it (now "
        f"{is_on})",
        f"host memory: {gib(host.bytes)} per machine with {ranks_text(topology.ranks_per_node)}{libraries}; peak in "
        f"{host} per rank" + (f"; available: {gib(machine.host)}" if machine.host else ""),
        f"disk: {gib(memory.disk_bytes)} = {memory.num_checkpoints} x {gib(memory.checkpoint)} of checkpoints + "
        f"{gib(memory.exports)} of exports" + (f"; free: {gib(machine.disk)}" if machine.disk else ""),
    ]
    if topology.on_gpu:
        lines.append(
            f"assumed, not measured: {gib(memory.context)} per rank for the CUDA context and libraries "
            f"(plan.gpu_overhead), {config.plan.reserve:.0%} of each GPU for memory fragmentation (plan.reserve)"
        )
    return [*lines, planned.verdict, *(f"  {line}" for line in planned.misfits[1:])]


def _update_activations(config: Config, topology: Topology) -> list[int]:
    """Return the most bytes of an update's activations, without and with checkpointing."""
    found = []
    for checkpointing in (False, True):
        changed = replace(config, model=replace(config.model, gradient_checkpointing=checkpointing))
        updates = (one.device for one in memory_map(changed, topology).moments if one.phase == "update")
        found.append(max(sum(one.bytes for one in items if one.what in (ACTIVATIONS, LOGITS)) for items in updates))
    return found


def _advice_lines(config: Config, planned: Fit, suggestions: list[Suggestion]) -> list[str]:
    if not planned.misfits:
        heading = "there is enough memory for any one of these:"
    elif suggestions and len(suggestions[0].changes) == 1:
        heading = "any one of these makes it fit:"
    else:
        heading = "no single option makes it fit; these do together:"
    lines = [heading] if suggestions else []
    for one in suggestions:
        peak = replace(planned, memory=one.memory).peak.bytes
        effects = "; ".join(change.effect for change in one.changes)
        lines.append(f"  {' '.join(one.arguments)}  ({effects}; peak {gib(peak)})")
    if planned.misfits:
        more = _more_gpus(config, planned)
        if more is not None:
            lines.append(f"with these options, it fits on {more} GPUs: plan.gpus={more}")
        elif not suggestions:
            lines.append(f"no option makes it fit, and it does not fit on up to {_MORE_GPUS[-1]} ranks either")
    return lines


def _compare(
    label: str, names: Iterable[str], configure: Callable[[str], Config], as_json: bool, shown: Console
) -> list[str]:
    """Plan a run for each name, show all as a table or JSON, and return the names that fit."""
    table = Table(box=None, pad_edge=False)
    for column in (label, "peak per rank", "in", "host", "disk", "verdict"):
        table.add_column(column, justify="left" if column in ("in", "verdict") else "right", no_wrap=True)
    records: list[dict[str, Any]] = []
    errors, fitting = [], []
    for name in names:
        try:
            planned = _plan(configure(name))
        except InputError as error:
            errors.append(f"{label}={name}: {error}")
            records.append({label: name, "error": str(error)})
            continue
        memory, moment = planned.memory, planned.memory.device_peak().moment
        spare = "" if planned.spare is None else f", {planned.spare:.0%} to spare"
        verdict = "does not fit" if planned.misfits else f"fits{spare}"
        sizes = (gib(size) for size in (memory.host_peak().bytes, memory.disk_bytes))
        table.add_row(name, gib(memory.gpu_bytes()), f"{moment.phase}: {moment.name}", *sizes, verdict)
        records.append({label: name, **planned.as_json()})
        if not planned.misfits:
            fitting.append(name)
    if len(errors) == len(records):
        raise InputError(errors[0])
    if as_json:
        print(json.dumps(records, indent=2))
    else:
        shown.print(table, soft_wrap=True)
        _print_lines(shown, errors)
    return fitting


def _sweep(options: argparse.Namespace, shown: Console) -> int:
    """Compare several values of one option."""
    key, is_pair, values = options.sweep.partition("=")
    if not is_pair or not all(values.split(",")):
        raise InputError(f"--sweep must be key=value,value,... such as gpus=2,4,8, got {options.sweep}")
    key = f"plan.{key}" if key in ("gpus", "gpu_memory", "host_memory") else key

    def configure(value: str) -> Config:
        return _with_known_shapes(load(options.command, [*options.overrides, f"{key}={value}"]))[0]

    return 0 if _compare(key, values.split(","), configure, options.json, shown) else OutOfMemoryError.code


def _max_model(config: Config, as_json: bool, shown: Console) -> int:
    """Compare policies of all sizes."""
    fitting = _compare("policy", _SHAPES, lambda name: _with_shape(config, name), as_json, shown)
    if not as_json:
        shown.print(f"largest policy that fits with these options: {fitting[-1] if fitting else 'none'}")
    return 0 if fitting else OutOfMemoryError.code


def _with_shape(config: Config, name: str) -> Config:
    """Return the configuration with one of the shapes for all models."""
    shape = {"model_type": "llama", **dict(zip(_SHAPE_KEYS, _SHAPES[name], strict=True))}
    sections = ("model", "reward_model") if isinstance(config, TrainPPOConfig) else ("model",)
    models = {key: replace(getattr(config, key), path=None, from_config=shape, tokenizer="bytes") for key in sections}
    return replace(config, **models)


def _print_lines(shown: Console, lines: Iterable[str]) -> None:
    for line in lines:
        shown.print(escape(line), soft_wrap=True)
