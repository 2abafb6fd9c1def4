"""Shared by the benchmarks: child processes with their peak memory, the peer, the roofline of the CPU, and tables.

This file is no benchmark. bench_ppo.py and bench_rm.py start it as a child process to measure the roofline: the size
of a model, the speed of large matrix products, the memory bandwidth, and the time that the matrix products of one
decoding step take. These scripts do not import torch, because a child's peak memory includes what its parent held.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

REPOSITORY = Path(__file__).resolve().parent.parent
PEER_SCRIPTS = REPOSITORY.parent / "shared" / "bench"
PACKAGES = ("torch", "transformers", "deepspeed")
NUM_BYTES = {"bfloat16": 2, "float32": 4}

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SQUARE, _ARRAY = 2048, 100_000_000  # rows of the large products; float32 numbers of the array that is read
_COLD_BYTES, _MAX_MATRICES = 256e6, 4096  # weights of the decoding products: more than any cache holds


@dataclass(frozen=True)
class Finished:
    """The result of a child process that succeeded."""

    text: str  # its output
    seconds: float
    peak_gib: float  # largest resident memory of it and its own children, each counted alone


def run_child(words: Sequence[str], log: Path, environment: dict[str, str], folder: Path | None = None) -> Finished:
    """Run a command; if it fails, exit with code 1 and the last lines of its output."""
    start = time.perf_counter()
    with log.open("wb") as file:
        child = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
    child.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text("utf-8", errors="replace")
    if child.returncode != 0:
        tail = "\n".join(text.splitlines()[-25:])
        raise SystemExit(f"{tail}\nexit code {child.returncode}: {shlex.join(words)}")
    return Finished(text, time.perf_counter() - start, usage.ru_maxrss / 2**20)


def last_json(text: str) -> dict[str, Any]:
    """Return the last line of an output that is a JSON object."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return dict(json.loads(line))
            except json.JSONDecodeError:
                continue
    raise SystemExit(f"a child process printed no JSON object; its last lines:\n{text[-2000:]}")


def task(script: str, work: dict[str, Any], log: Path) -> dict[str, Any]:
    """Run a script of this folder as a child process on all cores, with its work as JSON; return its JSON result."""
    words = [sys.executable, script, json.dumps(work)]
    return last_json(run_child(words, log, environment(sys.executable, num_ranks=1)).text)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def environment(python: str, num_ranks: int) -> dict[str, str]:
    """Return the environment of a command: no network, the cores divided among its ranks."""
    kept = {name: value for name, value in os.environ.items() if name not in _LAUNCHER_VARIABLES}
    return {
        **kept,
        "PATH": f"{Path(python).parent}{os.pathsep}{kept.get('PATH', '')}",
        "OMP_NUM_THREADS": str(max(1, cores() // num_ranks)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def settings(words: Iterable[str]) -> dict[str, str]:
    """Parse key=value words."""
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def overridden(words: Sequence[str], extra: Sequence[str]) -> list[str]:
    """Return key=value words in which extra words replace those with the same key."""
    return [f"{key}={value}" for key, value in (settings(words) | settings(extra)).items()]


@dataclass(frozen=True)
class Peer:
    """TRL in its own environment, driven by its own scripts."""

    python: Path
    scripts: Path

    def words(self, script: Path, num_ranks: int, num_accumulated: int, bf16: bool, folder: Path) -> list[str]:
        """Return the start of its command line: python, or accelerate with ZeRO-3 for several ranks."""
        if num_ranks == 1:
            return [str(self.python), str(script)]
        config = folder / "zero3_cpu.yaml"
        config.write_text(accelerate_config((self.scripts / config.name).read_text("utf-8"), num_accumulated, bf16))
        launch = [str(self.python.parent / "accelerate"), "launch", "--config_file", str(config)]
        return [*launch, "--num_processes", str(num_ranks), str(script)]

    def versions(self) -> dict[str, str]:
        names = ("trl", *PACKAGES)
        code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names}}}))"
        done = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout))


def accelerate_config(text: str, num_accumulated: int, bf16: bool) -> str:
    """Return accelerate's configuration with another number of accumulated passes and another dtype."""
    text = re.sub(r"gradient_accumulation_steps: \d+", f"gradient_accumulation_steps: {num_accumulated}", text)
    return re.sub(r"mixed_precision: \w+", f"mixed_precision: {'bf16' if bf16 else 'no'}", text)


def micro_batch(num_rows: int, limit: int) -> int:
    """Return the largest micro-batch size up to a limit that divides a rank's rows."""
    return next(size for size in range(min(num_rows, limit), 0, -1) if num_rows % size == 0)


def new_parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that bench_ppo.py and bench_rm.py share."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal LM with its tokenizer")
    parser.add_argument("--peer-python", type=Path, help="python of an environment with TRL (default: no peer)")
    default = PEER_SCRIPTS if PEER_SCRIPTS.is_dir() else None
    parser.add_argument("--peer-scripts", type=Path, default=default, help="folder with the peer's scripts")
    parser.add_argument("--ranks", type=int, default=1, help="more than 1: ZeRO-3, the cores divided among the ranks")
    parser.add_argument("--dtype", choices=NUM_BYTES, default="bfloat16", help="default: bfloat16")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="more options of the rlhf command")
    return parser


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace, fixed: Iterable[str]) -> None:
    """Exit with code 2 if options are invalid; fixed: option keys that the script sets itself."""
    if not options.model.is_dir():
        parser.error(f"--model {options.model}: no such folder")
    if options.peer_python and not (options.peer_scripts and options.peer_scripts.is_dir()):
        parser.error("--peer-python also needs --peer-scripts, the folder with the peer's scripts")
    for word in options.overrides:
        key, equals, _ = word.partition("=")
        if not equals:
            parser.error(f"{word}: expected key=value")
        if key in fixed:
            parser.error(f"{key} is set by this script, because both sides must use the same value")


def peer_of(options: argparse.Namespace) -> Peer | None:
    """Return the peer that the options describe; keep a symbolic link to python, which locates its packages."""
    if options.peer_python is None:
        return None
    return Peer(Path(os.path.abspath(options.peer_python)), options.peer_scripts.resolve())


def begin(name: str, options: argparse.Namespace, peer: Peer | None) -> dict[str, Any]:
    """Print and return what is measured, on which machine and with which versions.

    From now on every line is printed at once, also into a pipe, and SIGTERM ends the script and its child.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    found: dict[str, Any] = {
        "benchmark": name,
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"cpu": cpu_name(), "cores": cores(), "load": round(os.getloadavg()[0], 2)},
        "versions": {package: importlib.metadata.version(package) for package in ("rlhf", *PACKAGES)},
        "peer_versions": peer.versions() if peer else {},
        "options": json.loads(json.dumps(vars(options), default=str)),
    }
    print(f"{name}, {found['date']}\n  {found['command']}")
    print(f"machine: {cpu_name()}, {cores()} cores, load {found['machine']['load']} at the start")
    for side in ("versions", "peer_versions"):
        print(f"{side.replace('_', ' ')}: {', '.join(f'{key} {value}' for key, value in found[side].items()) or '-'}")
    return found


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Return the median of some values, with their range if there are several; a dash for none."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float | None:
    """Return the peer's median divided by ours, or None if a side is missing."""
    return statistics.median(theirs) / statistics.median(ours) if theirs and ours else None


def shown_ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def compared(
    ours: Mapping[str, Sequence[float]],
    peer: Mapping[str, Sequence[float]] | None,
    columns: Sequence[tuple[str, str, int]],
) -> str:
    """Return both sides' figures as a table; columns: title, name of the figure, digits."""
    rows = [["", "rlhf", "TRL", "TRL / rlhf"]]
    for title, key, digits in columns:
        others = peer[key] if peer else []
        cells = [shown(values, digits) for values in (ours[key], others)]
        rows.append([title, *cells, shown_ratio(ratio(others, ours[key]))])
    return table(rows if peer else [row[:2] for row in rows])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows in columns: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


@dataclass(frozen=True)
class ModelSize:
    """The sizes from which the work of a model is computed."""

    matrix_weights: int  # weights that every token is multiplied with, without the head
    head_weights: int  # vocabulary x width
    layers: int
    attention_width: int  # heads x width of a head
    cache_width: int  # keys and values of one layer

    @property
    def weights(self) -> int:
        """All weights of matrix products."""
        return self.matrix_weights + self.head_weights

    def forward(self, lengths: Iterable[float]) -> float:
        """Return the FLOPs of one forward pass over sequences of these lengths, without the head.

        2 per weight and token; attention: 4 x L^2 / 2 x width per layer, because half of L^2 is masked.
        """
        attention = 2 * self.layers * self.attention_width
        return sum(2 * self.matrix_weights * length + attention * length**2 for length in lengths)

    def logits(self, num_tokens: float) -> float:
        """Return the FLOPs of the head."""
        return 2 * self.head_weights * num_tokens

    def decoded_bytes(self, num_bytes: int, num_steps: int, num_rows: int, mean_prompt: float) -> tuple[float, float]:
        """Return how many bytes of weights, and of keys and values, decoding has to read."""
        cached = num_rows * num_steps * (mean_prompt + num_steps / 2)  # tokens before each step, over all steps
        weights = self.weights * num_steps * num_bytes
        return weights, cached * self.cache_width * self.layers * num_bytes


@dataclass(frozen=True)
class Roofline:
    """A model's size and the limits of this CPU, with all cores."""

    size: ModelSize
    flops: dict[str, float]  # FLOP/s of large square products, by dtype
    read: float  # bytes/s
    copy: float  # bytes/s, read and written
    decoding: dict[int, float]  # rows -> seconds of one step's matrix products, with weights read from memory

    @staticmethod
    def measured(model: Path, dtype: str, rows: Sequence[int], log: Path) -> Roofline:
        """Measure in a child process."""
        found = task(__file__, {"model": str(model), "dtype": dtype, "rows": list(rows)}, log)
        decoding = {int(key): value for key, value in found["decoding"].items()}
        return Roofline(ModelSize(**found["size"]), found["flops"], found["read"], found["copy"], decoding)

    def __str__(self) -> str:
        rates = ", ".join(f"{dtype} {rate / 1e12:.3f} TFLOP/s" for dtype, rate in self.flops.items())
        return (
            f"roofline of {cores()} threads: {_SQUARE} x {_SQUARE} matrix products {rates}; "
            f"memory read {self.read / 1e9:.1f} GB/s, copy {self.copy / 1e9:.1f} GB/s"
        )


def phase_heading(dtype: str) -> list[str]:
    return ["phase", "seconds", "tokens/s", "TFLOP/s", f"of the {dtype} product rate"]


def phase_row(name: str, flops: float, tokens: float, seconds: float, rate: float) -> list[str]:
    """Return a row of the table of phases; rate: FLOP/s of the roofline."""
    speed = flops / seconds
    return [name, f"{seconds:.2f}", f"{tokens / seconds:.0f}", f"{speed / 1e12:.3f}", f"{speed / rate:.1%}"]


def median_seconds(action: Callable[[], object], times: int) -> float:
    """Return the median duration of an action after two warm-up calls."""
    spent = []
    for turn in range(times + 2):
        start = time.perf_counter()
        action()
        if turn > 1:
            spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def measure(work: Mapping[str, Any]) -> dict[str, Any]:
    """Measure the roofline; work: model (a folder), dtype, rows."""
    import torch

    torch.set_grad_enabled(False)
    size, shapes = size_and_shapes(work["model"])
    flops = {}
    for name in NUM_BYTES:
        square = torch.randn(_SQUARE, _SQUARE).to(getattr(torch, name))
        flops[name] = 2 * _SQUARE**3 / median_seconds(partial(torch.mm, square, square), 7)
    source = torch.ones(_ARRAY)
    target = torch.empty_like(source)
    read = source.nbytes / median_seconds(source.sum, 7)
    copy = 2 * source.nbytes / median_seconds(partial(target.copy_, source), 7)
    decoding = {rows: decoding_seconds(shapes, rows, getattr(torch, work["dtype"])) for rows in work["rows"]}
    return {"size": asdict(size), "flops": flops, "read": read, "copy": copy, "decoding": decoding}


def decoding_seconds(shapes: Sequence[tuple[int, int]], num_rows: int, dtype: torch.dtype) -> float:
    """Time the matrix products of one decoding step; other weights fill the caches in between."""
    import torch

    once = sum(wide * high for wide, high in shapes) * dtype.itemsize
    copies = max(1, min(math.ceil(_COLD_BYTES / once), _MAX_MATRICES // len(shapes)))
    weights = [torch.randn(shape, dtype=torch.float32).to(dtype) for shape in [*shapes] * copies]
    inputs = {wide: torch.randn(num_rows, wide).to(dtype) for _, wide in shapes}

    def products() -> None:
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    return median_seconds(products, 5) / copies


def size_and_shapes(model: str) -> tuple[ModelSize, list[tuple[int, int]]]:
    """Return a model's size and the shapes (out, in) of its matrices, the head last, from its config alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    head = module.get_output_embeddings()
    shapes = []
    for layer in module.modules():
        if layer is not head and isinstance(layer, torch.nn.Linear):
            shapes.append((layer.out_features, layer.in_features))
        elif type(layer).__name__ == "Conv1D":  # GPT-2's linear layer, whose weight is transposed
            shapes.append((layer.nf, layer.nx))
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_width = 2 * (getattr(config, "num_key_value_heads", None) or heads) * width
    matrix_weights = sum(high * wide for high, wide in shapes)
    head_shape = (head.out_features, head.in_features)
    size = ModelSize(matrix_weights, math.prod(head_shape), config.num_hidden_layers, heads * width, kv_width)
    return size, [*shapes, head_shape]


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    else:
        argparse.ArgumentParser(description=__doc__).parse_args()
