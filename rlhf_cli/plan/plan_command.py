"""`rlhf plan`: what a run will take, drawn, as a table of several runs, or as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlhf_cli.config.compose import load
from rlhf_cli.config.errors import InputError, OutOfMemoryError
from rlhf_cli.config.schema import COMMANDS, TrainPPOConfig
from rlhf_cli.plan.advice import Suggestion, to_fit, to_use_room
from rlhf_cli.plan.build_map import update_activations, with_shapes
from rlhf_cli.plan.fit import Fit, fit
from rlhf_cli.plan.machine import Machine, gib, named, ranks
from rlhf_cli.plan.memory_map import MemoryMap, Place
from rlhf_cli.plan.phases import Config
from rlhf_cli.plan.render import bars, tables
from rlhf_cli.report.run_dir import run_folder
from rlhf_cli.system.terminal import console

USAGE = """\
usage: rlhf plan train-ppo|train-rm [conf=NAME | conf=FILE.yaml] [key=value ...] [--json]
                                    [--sweep key=value,value,...] [--max-model]

Work out, without loading any weight and without a GPU, what memory and disk a run will take in each phase, whether it
fits, and what to change. Texts are taken to be as long as the options allow (data.max_prompt_tokens,
rollout.max_new_tokens, data.max_tokens). Exit code 0: it fits; 7: it does not.

  plan.gpus=4 plan.gpu_memory=80GiB plan.host_memory=512GiB   another machine than this one
  --sweep gpus=2,4,8    a table, a line for each value; any option can be swept
  --max-model           how large a policy would fit, all four models being of its shape
  --json                everything as JSON, in bytes
"""
_GPUS = (1, 2, 4, 8, 16, 32, 64)
# Shapes of Llama's kind: width, layers, heads, key heads, width of the MLP, vocabulary.
_SIZES = {
    "0.1B": (576, 30, 9, 3, 1536, 49152),
    "0.4B": (960, 32, 15, 5, 2560, 49152),
    "0.5B": (896, 24, 14, 2, 4864, 151936),
    "1B": (2048, 16, 32, 8, 8192, 128256),
    "1.5B": (1536, 28, 12, 2, 8960, 151936),
    "3B": (3072, 28, 24, 8, 8192, 128256),
    "7B": (4096, 32, 32, 32, 11008, 32000),
    "8B": (4096, 32, 32, 8, 14336, 128256),
    "13B": (5120, 40, 40, 40, 13824, 32000),
    "14B": (5120, 48, 40, 8, 13824, 152064),
    "32B": (5120, 64, 40, 8, 27648, 152064),
    "70B": (8192, 80, 64, 8, 28672, 128256),
}


@dataclass
class _Asked:
    """The words of the command line."""

    command: str
    words: list[str] = field(default_factory=list)
    as_json: bool = False
    max_model: bool = False
    sweep: tuple[str, list[str]] | None = None


def show(args: list[str]) -> int:
    """Plan a run and show the plan; return the exit code."""
    if "--help" in args or "-h" in args:
        print(USAGE, end="")
        return 0
    asked = _parsed(args)
    shown = console(highlight=False)
    if asked.sweep is not None:
        return _sweep(asked, shown)
    config, notes = with_shapes(load(asked.command, asked.words))
    if asked.max_model:
        return _max_model(config, asked, shown)
    planned = _plan(config)
    if not planned.found.place.on_gpu:
        notes.append("no GPU here: planned for ranks in host memory; plan.gpu_memory=80GiB plans for GPUs")
    suggestions = _advice(config, planned)
    if asked.as_json:
        figures = planned.as_json() | {"notes": notes, "suggestions": [_suggestion_json(one) for one in suggestions]}
        print(json.dumps(figures, indent=2))
    else:
        _draw(shown, config, planned, notes, suggestions)
    return OutOfMemoryError.code if planned.misfits else 0


def _parsed(args: list[str]) -> _Asked:
    if not args or args[0] not in COMMANDS:
        raise InputError(f"plan wants a command: {' or '.join(COMMANDS)}, got {args[0] if args else 'none'}")
    asked = _Asked(args[0])
    rest = iter(args[1:])
    for word in rest:
        name, given, value = word.partition("=")
        if word == "--json":
            asked.as_json = True
        elif word == "--max-model":
            asked.max_model = True
        elif name == "--sweep":
            key, is_key, values = (value if given else next(rest, "")).partition("=")
            if not is_key or not all(values.split(",")):
                raise InputError("--sweep wants key=value,value,...: --sweep gpus=2,4,8")
            asked.sweep = f"plan.{key}" if key in ("gpus", "gpu_memory", "host_memory") else key, values.split(",")
        else:
            asked.words.append(word)
    if asked.max_model and asked.sweep:
        raise InputError("--max-model and --sweep were both given; give one of them")
    return asked


def _plan(config: Config) -> Fit:
    machine = Machine.here(run_folder(config.run)).planned(config.plan)
    return fit(config, _place(config, machine), machine)


def _place(config: Config, machine: Machine) -> Place:
    ranks = config.plan.gpus or config.launch.num_gpus
    node_ranks = min(config.plan.gpus_per_node or ranks, ranks)
    if ranks % node_ranks:
        raise InputError(f"plan.gpus must be a multiple of plan.gpus_per_node {node_ranks}, got {ranks}")
    return Place(ranks, node_ranks, machine.gpu is not None)


def _advice(config: Config, planned: Fit) -> list[Suggestion]:
    if planned.spare is None:
        return []
    place = planned.found.place

    def fits(changed: Config) -> MemoryMap | None:
        tried = fit(changed, place, planned.machine)
        return None if tried.misfits else tried.found

    advise = to_fit if planned.misfits else to_use_room
    return advise(config, place.num_ranks, fits)


def _more_gpus(config: Config, planned: Fit) -> int | None:
    """The smallest number of GPUs, more than now, on which the run fits as it is."""
    for more in (count for count in _GPUS if count > planned.found.place.num_ranks):
        node_ranks = min(more, config.plan.gpus_per_node or more)
        if more % node_ranks:
            continue
        try:
            tried = fit(config, Place(more, node_ranks, planned.found.place.on_gpu), planned.machine)
        except InputError:  # a batch that does not divide
            continue
        if not tried.misfits:
            return more
    return None


def _draw(shown: Console, config: Config, planned: Fit, notes: list[str], suggestions: list[Suggestion]) -> None:
    found = planned.found
    for line in (*notes, *planned.batches.lines):
        shown.print(escape(line), soft_wrap=True)
    shown.print()
    shown.print(bars(found, planned.machine, shown.width))
    shown.print()
    shown.print(tables(found), soft_wrap=True)
    shown.print()
    with_all, recomputed = update_activations(config, found.place)
    now = "with" if config.model.gradient_checkpointing else "without"
    host, libraries = found.host_peak(), "" if found.place.on_gpu else ", tensors and libraries"
    lines = [
        f"activations of an update: {gib(with_all)} without gradient checkpointing, {gib(recomputed)} with it (now "
        f"{now})",
        f"host memory: {gib(host.bytes)} on a machine with {ranks(found.place.node_ranks)}{libraries}, in "
        f"{host.moment.phase} ({host.moment.name}), most of it {named(host.largest)} a rank"
        + (f"; there are {gib(planned.machine.host)}" if planned.machine.host else ""),
        f"disk: {gib(found.disk_bytes)} = {found.num_checkpoints} x {gib(found.checkpoint)} of checkpoints + "
        f"{gib(found.exports)} of exports" + (f", {gib(planned.machine.disk)} free" if planned.machine.disk else ""),
    ]
    if found.place.on_gpu:
        lines.append(
            f"not measured, taken as given: {gib(found.context)} of CUDA context and libraries a rank "
            f"(plan.gpu_overhead), {config.plan.reserve:.0%} of the GPU for the allocator's fragments (plan.reserve)"
        )
    lines += [planned.verdict, *(f"  {line}" for line in planned.misfits[1:])]
    lines += _advice_lines(config, planned, suggestions)
    for line in lines:
        shown.print(escape(line), soft_wrap=True)


def _advice_lines(config: Config, planned: Fit, suggestions: list[Suggestion]) -> list[str]:
    if not planned.misfits:
        heading = "there is room for any of these:"
    elif suggestions and len(suggestions[0].costs) == 1:
        heading = "any of these makes it fit:"
    else:
        heading = "no single option makes it fit; these together do:"
    lines = [f"  {' '.join(one.words)}  ({'; '.join(one.costs)}; peak {_peak(one.found)})" for one in suggestions]
    if lines:
        lines.insert(0, heading)
    if planned.misfits:
        more = _more_gpus(config, planned)
        if more is not None:
            lines.append(f"as it is, it fits on {more} GPUs: plan.gpus={more}")
        elif not suggestions:
            lines.append(f"no option was found that makes it fit, nor do up to {_GPUS[-1]} ranks")
    return lines


def _peak(found: MemoryMap) -> str:
    return gib(found.gpu_bytes() if found.place.on_gpu else found.host_peak().bytes)


def _sweep(asked: _Asked, shown: Console) -> int:
    assert asked.sweep is not None
    key, values = asked.sweep
    table = Table(box=None, pad_edge=False)
    for name in (key, "peak a rank", "in", "host", "disk", "verdict"):
        table.add_column(name, justify="left" if name in ("in", "verdict") else "right", no_wrap=True)
    records: list[dict[str, Any]] = []
    refused: list[str] = []
    fits = False
    for value in values:
        try:
            config, _ = with_shapes(load(asked.command, [*asked.words, f"{key}={value}"]))
            planned = _plan(config)
        except InputError as error:
            refused.append(f"{key}={value}: {error}")
            records.append({key: value, "error": str(error)})
            continue
        found, fits = planned.found, fits or not planned.misfits
        peak = found.device_peak()
        spare = "" if planned.spare is None else f", {planned.spare:.0%} to spare"
        verdict = "does not fit" if planned.misfits else f"fits{spare}"
        where = f"{peak.moment.phase}: {peak.moment.name}"
        row = (value, gib(found.gpu_bytes()), where, gib(found.host_peak().bytes), gib(found.disk_bytes), verdict)
        table.add_row(*row)
        records.append({key: value, **planned.as_json()})
    if len(refused) == len(values):
        raise InputError(refused[0])
    if asked.as_json:
        print(json.dumps(records, indent=2))
    else:
        shown.print(table, soft_wrap=True)
        for line in refused:
            shown.print(escape(line), soft_wrap=True)
    return 0 if fits else OutOfMemoryError.code


def _max_model(config: Config, asked: _Asked, shown: Console) -> int:
    """Try policies of Llama's kind, from small to large; the other models have their shape."""
    table = Table(box=None, pad_edge=False)
    for name in ("policy", "weights", "peak a rank", "spare", "verdict"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    records = []
    largest = None
    for name, shape in _SIZES.items():
        planned = _plan(_with_shape(config, shape))
        found = planned.found
        weights = _num_weights(shape) + (not _is_tied(shape)) * shape[0] * shape[-1]
        largest = largest if planned.misfits else name
        spare = "" if planned.spare is None else f"{planned.spare:.0%}"
        verdict = "does not fit" if planned.misfits else "fits"
        table.add_row(name, f"{weights / 1e9:.2f}e9", gib(found.gpu_bytes()), spare, verdict)
        records.append({"policy": name, "weights": weights, **planned.as_json()})
    if asked.as_json:
        print(json.dumps(records, indent=2))
        return 0 if largest else OutOfMemoryError.code
    shown.print(table)
    shown.print(f"largest that fits with these options: {largest or 'none'}")
    return 0 if largest else OutOfMemoryError.code


def _with_shape(config: Config, shape: tuple[int, ...]) -> Config:
    width, layers, heads, kv_heads, inner, vocabulary = shape
    keys = {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": _is_tied(shape),
    }
    model = replace(config.model, path=None, from_config=keys, tokenizer="bytes")
    if isinstance(config, TrainPPOConfig):
        reward = replace(config.reward_model, path=None, from_config=keys, tokenizer="bytes")
        return replace(config, model=model, reward_model=reward)
    return replace(config, model=model)


def _is_tied(shape: tuple[int, ...]) -> bool:
    """Whether the head has the embeddings' weights, as in models that consist of them to a large part."""
    return shape[0] * shape[-1] > 0.15 * _num_weights(shape)


def _num_weights(shape: tuple[int, ...]) -> int:
    """Weights without those of a head of its own."""
    width, layers, heads, kv_heads, inner, vocabulary = shape
    attention = 2 * width * width + 2 * width * width * kv_heads // heads
    return layers * (attention + 3 * width * inner) + vocabulary * width


def _suggestion_json(one: Suggestion) -> dict[str, Any]:
    return {"words": list(one.words), "costs": list(one.costs), "peak": one.found.gpu_bytes()}
