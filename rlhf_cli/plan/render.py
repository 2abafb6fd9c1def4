"""Draw a memory map: a bar for each phase, and a table of what each bar contains."""

from __future__ import annotations

from collections import Counter

from rich.table import Table
from rich.text import Text

from rlhf_cli.plan.memory_map import GIB, MemoryMap, Moment, gib

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
# column of the table -> how the items in it begin
_COLUMNS = {
    "weights": ("weights", "loaded weights", "unsharded weights", "exported weights"),
    "masters": ("master weights", "moving average"),
    "optimizer": ("optimizer states",),
    "gradients": ("gradient",),
    "gathered": ("gathered", "reordered weights"),
    "activations": ("activations",),
    "logits": ("logits",),
    "cache": ("KV cache",),
}


def bars(memory: MemoryMap, limit: int | None, width: int) -> Text:
    """Draw the peak of each phase as a bar: a segment per model, and a line at the limit."""
    most = max(memory.gpu_bytes(), limit or 0)
    columns = max(20, width - 28)
    drawing = Text()
    for phase in memory.phases:
        sizes = _by_model(memory.device_peak(phase).moment)
        sizes[""] = sizes.get("", 0) + memory.context
        drawing.append(f"{phase:8}")
        drawing.append_text(_bar(sizes, most, columns, limit))
        drawing.append(f" {gib(memory.gpu_bytes(phase))}\n")
    models = {item.model for moment in memory.moments for item in (*moment.device, *moment.host)}
    names = [f"{letter} {name.replace('_', ' ')}" for name, (letter, _) in _MODELS.items() if name in models]
    legend = ", ".join([*names, *([f"{_CONTEXT[0]} context"] if memory.context else [])])
    drawing.append(f"{'':8}{legend}" + (f"; | limit {gib(limit)}" if limit else ""))
    return drawing


def _bar(sizes: dict[str, int], most: int, columns: int, limit: int | None) -> Text:
    bar = Text()
    end = 0
    for model, size in sizes.items():
        start, end = end, end + size
        cells = round(end / most * columns) - round(start / most * columns)
        letter, colour = _MODELS.get(model, _CONTEXT)
        bar.append(letter * cells, style=f"black on {colour}")
    bar.append(" " * (columns - len(bar)))
    if limit is not None:
        column = min(columns - 1, round(limit / most * columns))
        bar = bar[:column] + Text("|", style="bold red") + bar[column + 1 :]
    return bar


def _by_model(moment: Moment) -> dict[str, int]:
    sizes = Counter(dict.fromkeys(_MODELS, 0))
    for item in moment.device:
        sizes[item.model] += item.bytes
    return {model: size for model, size in sizes.items() if size}


def peak_table(memory: MemoryMap) -> Table:
    """List what each model holds at the peak of each phase."""
    table = Table(title="at the peak of each phase, GiB per rank", title_justify="left", box=None, pad_edge=False)
    for name in ("phase", "model", *_COLUMNS, "other", "total"):
        table.add_column(name, justify="left" if name in ("phase", "model") else "right", no_wrap=True)
    for phase in memory.phases:
        moment = memory.device_peak(phase).moment
        label = f"{phase}: {moment.name}"
        for model, size in _by_model(moment).items():
            items = [item for item in moment.device if item.model == model]
            cells = [sum(item.bytes for item in items if item.what.startswith(kinds)) for kinds in _COLUMNS.values()]
            numbers = (f"{cell / GIB:.2f}" if cell else "" for cell in (*cells, size - sum(cells), size))
            table.add_row(label, model.replace("_", " "), *numbers)
            label = ""
    return table
