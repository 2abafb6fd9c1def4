"""Measure how time and memory of a PPO step grow with the work, on a CPU: one quantity changes, the others stay.

The axes are prompts per step, response tokens, prompt tokens, ranks, and model weights. All other quantities stay at
16 prompts of 64 tokens, 32 response tokens, and a random Llama model of width 256 and 8 layers, or --model; on the
axis `model`, at 8 prompts of 32 tokens and 16 response tokens. Every point is a run of its own; its first step is left
out. EOS is a token that is almost never sampled. Sequences are not packed. Memory is that of the largest process.

For each axis a line a + b x is fitted by least squares (for ranks a + b / x), and the exponent of a power law through
the upper half of the points, where fixed costs matter least; the exponent of linear growth is 1.

On the axis `ranks` every rank has one thread and ZeRO-3 shards every parameter. Collectives are counted on rank 0: the
calls, the bytes of the complete tensors, and the bytes that a rank sends on a ring: (n - 1) / n of the tensor, or
twice that for an all-reduce. They are compared with plain ZeRO-3, which gathers the policy once for the rollout, all
four models once for scoring, and policy and value model twice per micro-batch of the update, and which reduces their
gradients once per micro-batch.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import random
import statistics
import string
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_common as common
import bench_ppo as ppo

PHASES = ("rollout", "score", "update")
QUANTITIES = (*PHASES, "step", "peak_gib")
GIVEN = "given"  # the model of --model
VOCABULARY = 2048
LABELS = {
    "prompts": "prompts per step",
    "response": "response tokens",
    "prompt": "prompt tokens",
    "ranks": "ranks with one thread each",
    "model": "weights of a model, millions",
}


@dataclass(frozen=True)
class Point:
    """The work of one run; model: GIVEN, or width x layers of a random model."""

    prompts: int = 16
    response: int = 32
    prompt: int = 64
    model: str = "256x8"
    ranks: int = 0  # 0: one process with all cores, else ranks of one thread each


def axes(given: bool, quick: bool, ranks: Sequence[int]) -> dict[str, list[Point]]:
    """Return the points of every axis."""
    base = Point(model=GIVEN) if given else Point()
    small = Point(8, 16, 32)
    if quick:
        base, small = Point(4, 8, 64 if given else 16, GIVEN if given else "64x2"), Point(4, 8, 16)
    values: dict[str, Sequence[Any]] = {
        "prompts": (8, 16, 32, 64),
        "response": (16, 32, 64, 128),
        "prompt": (64, 128, 256) if given else (16, 64, 128, 256),
        "ranks": ranks,
        "model": ("64x2", "128x4", "256x8", "384x16", "576x30"),
    }
    return {
        name: [replace(small if name == "model" else base, **{name: value}) for value in points[: 2 if quick else None]]
        for name, points in values.items()
    }


def write_model(work: Mapping[str, Any]) -> dict[str, Any]:
    """Write a random policy and reward model in a child process; 576x30 has the shape of SmolLM2-135M."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from rlhf_cli.models.byte_tokenizer import byte_tokenizer

    width, layers = map(int, work["shape"].split("x"))
    heads = max(1, width // 64)
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 if heads % 3 == 0 else heads,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        num_labels=1,
        **{f"{key}_token_id": getattr(tokenizer, f"{key}_token_id") for key in ("bos", "eos", "pad")},
    )
    for name, kind in (("policy", LlamaForCausalLM), ("reward_model", LlamaForSequenceClassification)):
        kind(config).to(getattr(torch, work["dtype"])).save_pretrained(Path(work["folder"], name))
        tokenizer.save_pretrained(Path(work["folder"], name))
    return {}


def prepared(point: Point, options: argparse.Namespace, folder: Path) -> ppo.Prepared:
    """Write the models and prompts of a point; a token of the byte tokenizer is one letter."""
    if point.model == GIVEN:
        return ppo.prepared(options, [ppo.Shape(point.prompts, point.response)], folder)
    common.task(__file__, {"shape": point.model, "dtype": options.dtype, "folder": str(folder)}, folder / "model.log")
    draw = random.Random(0)
    prompts = ["".join(draw.choices(string.ascii_lowercase, k=point.prompt)) for _ in range(256)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return ppo.Prepared(folder, [point.prompt] * len(prompts), "", 0)


# --- runs


def run(point: Point, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run a point; return medians over its steps, peak memory, model weights and counted collectives."""
    overrides = ["data.apply_chat_template=false"] if point.model != GIVEN else []
    overrides += ["model.packing=false", "reward_model.packing=false", *options.overrides]
    environment = {}
    if point.ranks:
        overrides.append("++deepspeed.zero_optimization.stage3_param_persistence_threshold=0")
        environment = counting_environment(folder)
    shared = argparse.Namespace(
        model=options.model,
        ranks=max(1, point.ranks),
        dtype=options.dtype,
        iters=options.steps,
        natural=False,
        prompt_tokens=[point.prompt, point.prompt],
        peer_scripts=None,
        micro_tokens=options.micro_tokens,
        overrides=overrides,
        float32_states=True,
    )
    shape = ppo.Shape(point.prompts, point.response)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        given = prepared(point, shared, Path(name))
        weights = sum(file.stat().st_size for file in Path(name, "policy").glob("*.safetensors"))
        done = ppo.run_ours(shared, given, shape, "run", environment)
    found = {name: statistics.median(r[f"time/{name}"] for r in done["records"]) for name in (*PHASES, "step")}
    tokens = statistics.median(record["response_length"] for record in done["records"])
    counts = folder / "collectives.json"
    collectives = json.loads(counts.read_text()) if point.ranks > 1 else {}
    print(f"{point}: {found['step']:.2f} s per step, {tokens:.1f} response tokens, {done['run_s']:.0f} s in total")
    found |= {"peak_gib": done["peak_gib"], "weights": weights / common.NUM_BYTES[options.dtype]}
    return {**found, "point": asdict(point), "collectives": collectives}


# --- collectives, counted inside the ranks

# function of torch.distributed -> the argument that holds the complete tensor, and how often a rank sends (n - 1) / n
COLLECTIVES = {
    "all_gather_into_tensor": ("output_tensor", 1),
    "all_gather_single": ("output_tensor", 1),
    "all_gather": ("tensor_list", 1),
    "reduce_scatter_tensor": ("input", 1),
    "reduce_scatter_single": ("input", 1),
    "reduce_scatter": ("input_list", 1),
    "all_reduce": ("tensor", 2),
    "broadcast": ("tensor", 1),
    "reduce": ("tensor", 1),
    "all_to_all_single": ("input", 1),
}


def counting_environment(folder: Path) -> dict[str, str]:
    """Return variables with which every rank counts its collectives: Python imports sitecustomize at its start."""
    hook = f"import os, sys\nif 'RANK' in os.environ:\n    sys.path.append({str(Path(__file__).parent)!r})\n"
    hook += f"    import bench_scaling\n    bench_scaling.count_collectives({str(folder / 'collectives.json')!r})\n"
    (folder / "sitecustomize.py").write_text(hook)
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


class Meter:
    """Counts collectives by phase and kind, in all steps but the first; a collective inside another counts once."""

    def __init__(self) -> None:
        self.phase = ""  # empty: nothing is counted
        self.steps: set[int] = set()
        self.totals: Counter[tuple[str, str, str]] = Counter()
        self._inside = False

    def enter(self, phase: str, step: int) -> None:
        self.phase = phase if phase in PHASES and step > 1 else ""
        if self.phase:
            self.steps.add(step)

    def counted(self, plain: Callable[..., Any], whole: str, times: int, num_ranks: int) -> Callable[..., Any]:
        signature, name = inspect.signature(plain), plain.__name__

        def collective(*args: Any, **kwargs: Any) -> Any:
            if not self.phase or self._inside:
                return plain(*args, **kwargs)
            tensors = signature.bind(*args, **kwargs).arguments[whole]
            num_bytes = sum(one.nbytes for one in (tensors if isinstance(tensors, list) else [tensors]))
            kind = "gathered" if "gather" in name else "reduced" if "reduce" in name else "other"
            sent = times * num_bytes * (num_ranks - 1) / num_ranks
            for key, value in (("calls", 1), ("bytes", num_bytes), ("sent", sent)):
                self.totals[self.phase, kind, key] += value  # type: ignore[assignment]
            self._inside = True
            try:
                return plain(*args, **kwargs)
            finally:
                self._inside = False

        return collective

    def per_step(self) -> dict[str, dict[str, float]]:
        """Return calls, bytes and sent bytes per step for each "phase kind"."""
        found: dict[str, dict[str, float]] = {}
        for (phase, kind, key), value in sorted(self.totals.items()):
            found.setdefault(f"{phase} {kind}", {})[key] = value / len(self.steps)
        return found


def count_collectives(file: str) -> None:
    """Count the collectives of this process; rank 0 writes them to a file when a phase begins."""
    from torch import distributed
    from torch.distributed import distributed_c10d

    import rlhf_cli.run.launch  # noqa: F401  sets variables that DeepSpeed reads when it is imported
    from rlhf_cli.system.watchdog import PROGRESS

    meter, rank, num_ranks = Meter(), os.environ["RANK"], int(os.environ["WORLD_SIZE"])
    for name, (whole, times) in COLLECTIVES.items():
        counted = meter.counted(getattr(distributed_c10d, name), whole, times, num_ranks)
        for module in (distributed, distributed_c10d):
            setattr(module, name, counted)
    plain = type(PROGRESS).enter

    def enter(progress: Any, name: str, step: int | None = None) -> None:
        if rank == "0" and meter.steps:
            Path(file).write_text(json.dumps(meter.per_step()))
        plain(progress, name, step)
        meter.enter(name, progress.step)

    type(PROGRESS).enter = enter  # type: ignore[method-assign]


def zero3_bytes(weights: float, num_bytes: int, num_micro: int) -> dict[str, float]:
    """Return the bytes of complete tensors that plain ZeRO-3 moves in a step with one update; see the docstring."""
    model = weights * num_bytes
    return {
        "rollout gathered": model,
        "score gathered": 4 * model,
        "update gathered": 4 * num_micro * model,
        "update reduced": 2 * num_micro * model,
    }


def collectives_table(result: Mapping[str, Any], options: argparse.Namespace) -> str:
    """Return what a rank moves in a step, compared with plain ZeRO-3."""
    point = Point(**result["point"])
    per_micro = max(1, options.micro_tokens // (point.prompt + point.response))
    num_micro = math.ceil(point.prompts / point.ranks / per_micro)
    plain = zero3_bytes(result["weights"], common.NUM_BYTES[options.dtype], num_micro)
    rows = [[f"{point.ranks} ranks, per step", "calls", "tensors, MB", "plain ZeRO-3, MB", "ratio", "sent, MB"]]
    for name, counted in result["collectives"].items():
        expected = plain.get(name)
        cells = [f"{expected / 1e6:.2f}", f"{counted['bytes'] / expected:.2f}"] if expected else ["-", "-"]
        sizes = f"{counted['bytes'] / 1e6:.2f}", f"{counted['sent'] / 1e6:.2f}"
        rows.append([name, f"{counted['calls']:.0f}", sizes[0], *cells, sizes[1]])
    return common.table(rows)


# --- fits and pictures


@dataclass(frozen=True)
class Fit:
    """A line through the points, and the exponent of a power law through the upper half of them."""

    fixed: float
    slope: float
    inverse: bool  # fixed + slope / x instead of fixed + slope * x
    deviation: float  # largest relative deviation of the line
    exponent: float

    def at(self, x: float) -> float:
        return self.fixed + self.slope * (1 / x if self.inverse else x)

    def __str__(self) -> str:
        return f"{self.fixed:.3g} {self.slope:+.3g} {'/' if self.inverse else '*'} x"


def fitted(xs: Sequence[float], ys: Sequence[float], inverse: bool = False) -> Fit:
    """Fit points, which are sorted by x; there must be two or more, with positive coordinates."""
    slope, fixed = statistics.linear_regression([1 / x for x in xs] if inverse else xs, ys)
    half = max(2, math.ceil(len(xs) / 2))
    exponent = statistics.linear_regression([math.log(x) for x in xs[-half:]], [math.log(y) for y in ys[-half:]])[0]
    line = Fit(fixed, slope, inverse, 0.0, exponent)
    return replace(line, deviation=max(abs(line.at(x) / y - 1) for x, y in zip(xs, ys, strict=True)))


def svg(label: str, xs: Sequence[float], curves: Mapping[str, tuple[Sequence[float], Fit]]) -> str:
    """Return a picture: seconds of the phases on the left, memory on the right, each with its line."""
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 400" font-family="sans-serif" font-size="12">']
    parts.append('<rect width="900" height="400" fill="white"/>')
    for left, title, names in ((60, "seconds per step", (*PHASES, "step")), (520, "peak memory, GiB", ("peak_gib",))):
        top = 1.05 * max(max(curves[name][0]) for name in names)
        parts.append(f'<text x="{left}" y="20">{title} by {escape(label)}</text>')
        parts.append(f'<path d="M{left} 30V290H{left + 340}" fill="none" stroke="#333"/>')
        parts += [f'<text x="{left + 340 * x / xs[-1]:.0f}" y="308" text-anchor="middle">{x:.3g}</text>' for x in xs]
        for part in range(1, 5):
            y = 290 - 260 * part / 4
            parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{top * part / 4:.2g}</text>')
            parts.append(f'<path d="M{left} {y}h340" stroke="#e5e5e5"/>')
        for row, (name, colour) in enumerate(zip(names, ("#0072b2", "#e69f00", "#009e73", "#d55e00"), strict=False)):
            ys, fit = curves[name]
            line = [xs[0] + (xs[-1] - xs[0]) * part / 40 for part in range(41)]
            path = " ".join(f"{left + 340 * x / xs[-1]:.1f},{290 - 260 * fit.at(x) / top:.1f}" for x in line)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
            for x, y in zip(xs, ys, strict=True):
                at = f'cx="{left + 340 * x / xs[-1]:.1f}" cy="{290 - 260 * y / top:.1f}"'
                parts.append(f'<circle {at} r="4" fill="{colour}"/>')
            parts.append(f'<text x="{left}" y="{330 + 16 * row}" fill="{colour}">{name}: {escape(str(fit))}</text>')
    return "\n".join([*parts, "</svg>", ""])


# --- output


def measured(name: str, points: Sequence[Point], options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Run an axis; print its tables, write its picture, and yield the results."""
    print(f"\n== {LABELS[name]}")
    results = [run(point, options, folder) for point in points]
    xs = [r["weights"] / 1e6 if name == "model" else float(r["point"][name]) for r in results]
    rows = [[LABELS[name], *(f"{phase} s" for phase in (*PHASES, "step")), "peak, GiB"]]
    rows += [[f"{x:.4g}", *(f"{r[key]:.2f}" for key in QUANTITIES)] for x, r in zip(xs, results, strict=True)]
    print(common.table(rows))
    if len(xs) > 1:
        curves = {}
        for key in QUANTITIES:
            ys = [result[key] for result in results]
            curves[key] = ys, fitted(xs, ys, inverse=name == "ranks" and key != "peak_gib")
        fits = [[key, str(f), f"{f.deviation:.0%}", f"{f.exponent:.2f}"] for key, (_, f) in curves.items()]
        print("\n" + common.table([["", "line", "largest deviation", "exponent"], *fits]))
        (options.out / f"growth_{name}.svg").write_text(svg(LABELS[name], xs, curves), "utf-8")
    for result in results:
        if result["collectives"]:
            print("\n" + collectives_table(result, options))
        yield {"axis": name, **result}


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exit with code 2 if it is invalid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, help="folder of a causal LM with its tokenizer, for all axes except `model`")
    add("--axis", nargs="+", choices=LABELS, default=list(LABELS), help="default: all")
    add("--ranks", type=int, nargs="+", default=[1, 2, 4], help="points of the axis `ranks` (default: 1 2 4)")
    add("--steps", type=int, default=3, help="steps per run; the first is left out (default: 3)")
    add("--dtype", choices=common.NUM_BYTES, default="bfloat16", help="default: bfloat16")
    add("--micro-tokens", type=int, default=1024, help="ppo.micro_batch_tokens (default: 1024)")
    add("--out", type=Path, default=Path("outputs/scaling"), help="folder for scaling.json and one SVG per axis")
    add("--quick", action="store_true", help="tiny models and two points per axis, to try the script")
    add("overrides", nargs="*", metavar="key=value", help="more options of `rlhf train-ppo`")
    options = parser.parse_args(argv)
    if options.model and not options.model.is_dir():
        parser.error(f"--model {options.model}: no such folder")
    if options.steps < 2:
        parser.error("--steps must be at least 2, because the first step is left out")
    if any(number < 1 or 4 % number for number in options.ranks):
        parser.error("--ranks: each must be 1, 2 or 4, so that it divides the prompts of a step")
    return options


def main() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("{"):  # the child process
        print(json.dumps(write_model(json.loads(sys.argv[1]))))
        return
    options = parsed()
    found = common.begin("bench_scaling", options, None)
    options.out.mkdir(parents=True, exist_ok=True)
    points = axes(options.model is not None, options.quick, options.ranks)
    found["results"] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        for axis in options.axis:
            found["results"] += measured(axis, points[axis], options, Path(name))
            (options.out / "scaling.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(f"\nwritten: {options.out}/scaling.json and growth_*.svg")


if __name__ == "__main__":
    main()
