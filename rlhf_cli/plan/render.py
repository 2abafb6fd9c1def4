"""A memory map for the eye: a bar for each phase, a table of what is in it, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from rlhf_cli.plan.machine import Machine, gib
from rlhf_cli.plan.memory_map import GIB, Item, MemoryMap

# a letter and a colour each, so that the drawing can be read without colours
_MODELS = {
    "policy": ("P", "blue"),
    "value_model": ("V", "green"),
    "reference": ("R", "cyan"),
    "reward_model": ("W", "magenta"),
    "gold_reward_model": ("G", "bright_yellow"),
    "model": ("M", "blue"),
}
_CONTEXT = ("c", "bright_black")
_KINDS = {
    "weights": ("weights", "whole weights, loaded", "whole weights, moved before they are sharded", "exported weights"),
    "masters": ("master weights", "copies while masters are made", "moving average"),
    "optimizer": ("optimizer states",),
    "gradients": (
        "gradients",
        "gradients for the optimizer",
        "gradients of a layer",
        "gradients being reduced",
        "reduce bucket",
    ),
    "gathered": ("gathered weights", "live weights", "a gathered parameter", "weights laid out"),
    "activations": ("activations", "activations kept for the update"),
    "logits": ("logits", "logits kept for the update"),
    "cache": ("KV cache",),
}
_OTHER = "other"


def bars(found: MemoryMap, machine: Machine, width: int) -> Text:
    """Draw a bar a phase: each model a segment, memory up to the device's limit, which is a line."""
    limit = machine.gpu if found.place.on_gpu else machine.host
    most = max(found.gpu_bytes(), limit or 0)
    columns = max(20, width - 28)
    drawing = Text()
    for phase in found.phases:
        peak = found.device_peak(phase)
        drawing.append(f"{phase:8}")
        drawing.append_text(_bar([*_by_model(peak.moment.device), ("", found.context)], most, columns, limit))
        drawing.append(f" {gib(peak.bytes + found.context)}\n")
    names = [f"{letter} {name.replace('_', ' ')}" for name, (letter, _) in _MODELS.items() if _is_in(found, name)]
    legend = ", ".join([*names, *([f"{_CONTEXT[0]} context"] if found.context else [])])
    drawing.append(f"{'':8}{legend}" + (f"; | limit {gib(limit)}" if limit else ""))
    return drawing


def _bar(parts: list[tuple[str, int]], most: int, columns: int, limit: int | None) -> Text:
    bar = Text()
    end = 0
    for model, size in parts:
        start, end = end, end + size
        cells = round(end / most * columns) - round(start / most * columns)
        letter, colour = _MODELS.get(model, _CONTEXT)
        bar.append(letter * cells, style=f"black on {colour}")
    bar.append(" " * (columns - len(bar)))
    if limit is not None:
        place = min(columns - 1, round(limit / most * columns))
        bar = bar[:place] + Text("|", style="bold red") + bar[place + 1 :]
    return bar


def _by_model(items: Iterable[Item]) -> list[tuple[str, int]]:
    sizes: dict[str, int] = dict.fromkeys(_MODELS, 0)
    for item in items:
        sizes[item.model] = sizes.get(item.model, 0) + item.bytes
    return [(model, size) for model, size in sizes.items() if size]


def _is_in(found: MemoryMap, model: str) -> bool:
    return any(item.model == model for moment in found.moments for item in (*moment.device, *moment.host))


def tables(found: MemoryMap) -> Table:
    """List what each model holds at the fullest moment of each phase, in GiB."""
    title = "at the fullest moment of each phase, GiB a rank"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("phase", "model", *_KINDS, _OTHER, "all"):
        table.add_column(name, justify="left" if name in ("phase", "model") else "right", no_wrap=True)
    for phase in found.phases:
        moment = found.device_peak(phase).moment
        first = f"{phase}: {moment.name}"
        for model, _ in _by_model(moment.device):
            items = [item for item in moment.device if item.model == model]
            cells = [sum(item.bytes for item in items if item.what in names) for names in _KINDS.values()]
            whole = sum(item.bytes for item in items)
            row = [_cell(size) for size in (*cells, whole - sum(cells), whole)]
            table.add_row(first, model.replace("_", " "), *row)
            first = ""
    return table


def _cell(size: int) -> str:
    return f"{size / GIB:.2f}" if size else ""
