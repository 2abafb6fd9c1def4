"""What bench_ppo.py and bench_rm.py share: child processes with their peak memory, the peer, the roofline, tables.

usage: python scripts/bench_common.py '{"model": DIR, "dtype": "bfloat16", "rows": [16]}'

Prints, as one JSON object, the size of a model and what this CPU can do: the rate of large matrix products, the
memory bandwidth, and the seconds that the matrix products of one decoding step take with so many rows. The two scripts
start it as a child process while nothing else of theirs runs. They import no torch themselves: a child's peak memory
counts what its parent held when it was started.
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
NUM_BYTES = {"bfloat16": 2, "float32": 4}  # of a number

_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TAIL = 25  # lines of a child that failed
_SQUARE, _ARRAY = 2048, 100_000_000  # side of the large products; float32 numbers of the array that is read
_COLD_BYTES, _MOST_MATRICES = 256e6, 4096  # weights of the decoding products: more than any cache holds


@dataclass(frozen=True)
class Finished:
    """A child process that ended well."""

    text: str  # what it printed
    seconds: float
    peak_gib: float  # resident memory of the largest one among it and its own children


def run_child(words: Sequence[str], log: Path, environment: dict[str, str], folder: Path | None = None) -> Finished:
    """Run a command to its end; if it fails, end this script with exit code 1 and the last lines of the child."""
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
        tail = "\n".join(text.splitlines()[-_TAIL:])
        raise SystemExit(f"{tail}\nexit code {child.returncode}: {shlex.join(words)}")
    return Finished(text, time.perf_counter() - start, usage.ru_maxrss / 2**20)


def last_json(text: str) -> dict[str, Any]:
    """Return the last line that is a JSON object; other lines may follow it."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except json.JSONDecodeError:
                continue
            assert isinstance(found, dict)
            return found
    raise SystemExit(f"a child printed no JSON object; its last lines:\n{text[-2000:]}")


def task(script: str, work: dict[str, Any], log: Path) -> dict[str, Any]:
    """Have a script of this folder do a part of the work in a child process, on all cores; return what it prints."""
    words = [sys.executable, script, json.dumps(work)]
    return last_json(run_child(words, log, environment(sys.executable, num_ranks=1)).text)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def environment(python: str, num_ranks: int) -> dict[str, str]:
    """Return the environment of a command: its own programs first, the cores divided among its ranks, no network."""
    kept = {name: value for name, value in os.environ.items() if name not in _LAUNCHERS}
    return {
        **kept,
        "PATH": f"{Path(python).parent}{os.pathsep}{kept.get('PATH', '')}",
        "OMP_NUM_THREADS": str(max(1, cores() // num_ranks)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def overridden(words: Sequence[str], extra: Sequence[str]) -> list[str]:
    """Return key=value words with some replaced or added; a key is there once."""
    return [f"{key}={value}" for key, value in (settings(words) | settings(extra)).items()]


def settings(words: Iterable[str]) -> dict[str, str]:
    """Read key=value words."""
    return {key: value for key, _, value in (word.partition("=") for word in words)}


@dataclass(frozen=True)
class Peer:
    """TRL in an environment of its own, driven by scripts of its own."""

    python: Path
    scripts: Path

    def words(self, script: Path, num_ranks: int, num_accumulated: int, bf16: bool, folder: Path) -> list[str]:
        """Return the start of its command line: python alone, or accelerate with ZeRO-3 on several ranks."""
        if num_ranks == 1:
            return [str(self.python), str(script)]
        config = folder / "zero3_cpu.yaml"
        config.write_text(accelerate_config((self.scripts / config.name).read_text("utf-8"), num_accumulated, bf16))
        launch = [str(self.python.parent / "accelerate"), "launch", "--config_file", str(config)]
        return [*launch, "--num_processes", str(num_ranks), str(script)]

    def versions(self) -> dict[str, str]:
        """Return the versions of TRL and what it runs on."""
        code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {PEER_PACKAGES}}}))"
        done = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout))


PEER_PACKAGES = ("trl", *PACKAGES)


def accelerate_config(text: str, num_accumulated: int, bf16: bool) -> str:
    """Return accelerate's configuration for another number of accumulated passes and another type."""
    text = re.sub(r"gradient_accumulation_steps: \d+", f"gradient_accumulation_steps: {num_accumulated}", text)
    return re.sub(r"mixed_precision: \w+", f"mixed_precision: {'bf16' if bf16 else 'no'}", text)


def micro_batch(num_rows: int, wanted: int) -> int:
    """Return the largest size, not over the wanted one, that splits a rank's rows evenly."""
    return next(size for size in range(min(num_rows, wanted), 0, -1) if num_rows % size == 0)


class Parser(argparse.ArgumentParser):
    """A parser whose help is its description, which lists the options by itself."""

    def format_help(self) -> str:
        return self.description or ""


def new_parser(text: str | None) -> Parser:
    """Return a parser with the options of both scripts; text: the help."""
    parser = Parser(description=text)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--peer-scripts", type=Path, default=PEER_SCRIPTS if PEER_SCRIPTS.is_dir() else None)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--dtype", choices=NUM_BYTES, default="bfloat16")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    return parser


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace, fixed: Iterable[str]) -> None:
    """End with exit code 2 where options do not fit; fixed: keys of the command that the script sets itself."""
    if not options.model.is_dir():
        parser.error(f"--model {options.model}: no such folder")
    if options.peer_python and not (options.peer_scripts and options.peer_scripts.is_dir()):
        parser.error("--peer-python needs --peer-scripts: the folder of the peer's scripts")
    for word in options.overrides:
        if "=" not in word:
            parser.error(f"{word}: wanted key=value")
    for key in settings(options.overrides):
        if key in fixed:
            parser.error(f"{key} follows from the options of this script, which both sides share")


def peer_of(options: argparse.Namespace) -> Peer | None:
    """Return the peer that the options name; its interpreter stays the link it may be, or it loses its packages."""
    if options.peer_python is None:
        return None
    return Peer(Path(os.path.abspath(options.peer_python)), options.peer_scripts.resolve())


def heading(name: str, options: argparse.Namespace, peer: Peer | None) -> dict[str, Any]:
    """Print what is measured, where and with which versions; return it."""
    found: dict[str, Any] = {
        "benchmark": name,
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"cpu": cpu_name(), "cores": cores(), "load": round(os.getloadavg()[0], 2)},
        "versions": {package: importlib.metadata.version(package) for package in ("rlhf", *PACKAGES)},
        "peer_versions": peer.versions() if peer else None,
        "options": {key: as_json(value) for key, value in vars(options).items()},
    }
    print(f"{name}, {found['date']}\n  {found['command']}")
    print(f"machine: {cpu_name()}, {cores()} cores, load {found['machine']['load']} at the start")
    for side in ("versions", "peer_versions"):
        if found[side]:
            print(f"{side.replace('_', ' ')}: {', '.join(f'{key} {value}' for key, value in found[side].items())}")
    return found


def begin() -> None:
    """Print each line at once, also into a pipe, for a benchmark takes minutes; end with the child on SIGTERM."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def as_json(value: Any) -> Any:
    if isinstance(value, list):
        return [as_json(one) for one in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def finish(found: dict[str, Any], out: Path | None) -> None:
    """Print everything as one JSON line, the last one, and append it to a file."""
    line = json.dumps(found)
    if out is not None:
        with out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    print(line)


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Return the median of some values and, where there are several, their range; a dash for none."""
    if not values:
        return "-"
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float | None:
    """Return the peer's median divided by ours; None where either is missing."""
    return statistics.median(theirs) / statistics.median(ours) if theirs and ours else None


def shown_ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as columns: the first one aligned on the left, the others on the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


@dataclass(frozen=True)
class ModelSize:
    """What the work of a model follows from."""

    matrix_weights: int  # that every token is multiplied with, the head aside
    head_weights: int  # of the head: vocabulary x width
    layers: int
    attention_width: int  # heads x width of a head
    cache_width: int  # of keys and values together, one layer

    @property
    def weights(self) -> int:
        """All weights in matrix products."""
        return self.matrix_weights + self.head_weights

    def forward(self, lengths: Iterable[float]) -> float:
        """Return the FLOPs of reading sequences of these lengths once, without the head.

        Two a weight and token; attention: 4 x L^2 / 2 x its width in each layer, half of L^2 being masked.
        """
        attention = 2 * self.layers * self.attention_width
        return sum(2 * self.matrix_weights * length + attention * length**2 for length in lengths)

    def logits(self, num_tokens: float) -> float:
        """Return the FLOPs of the head for so many tokens."""
        return 2 * self.head_weights * num_tokens

    def decoded_bytes(self, num_bytes: int, num_steps: int, num_rows: int, num_prompt: float) -> tuple[float, float]:
        """Return the bytes of weights, and of keys and values, that decoding has to read; num_prompt: a row's mean."""
        cached = num_rows * num_steps * (num_prompt + num_steps / 2)  # tokens before each step, over all steps
        weights = self.weights * num_steps * num_bytes
        return weights, cached * self.cache_width * self.layers * num_bytes


@dataclass(frozen=True)
class Roofline:
    """A model's size and what the CPU can do, all cores together."""

    size: ModelSize
    flops: dict[str, float]  # FLOP/s of large square products, by type
    read: float  # bytes/s
    copy: float  # bytes/s, read and written ones
    decoding: dict[int, float]  # rows -> seconds of one step's matrix products, their weights in memory

    @staticmethod
    def measured(model: Path, dtype: str, rows: Sequence[int], log: Path) -> Roofline:
        """Measure in a child process."""
        found = task(__file__, {"model": str(model), "dtype": dtype, "rows": list(rows)}, log)
        decoding = {int(key): value for key, value in found["decoding"].items()}
        return Roofline(ModelSize(**found["size"]), found["flops"], found["read"], found["copy"], decoding)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rates = ", ".join(f"{dtype} {rate / 1e12:.3f} TFLOP/s" for dtype, rate in self.flops.items())
        return (
            f"roofline ({cores()} threads): products of {_SQUARE} x {_SQUARE} matrices {rates}; memory read "
            f"{self.read / 1e9:.1f} GB/s, copied {self.copy / 1e9:.1f} GB/s"
        )


def phase_row(name: str, flops: float, tokens: float, seconds: float, rate: float) -> list[str]:
    """Return a row of the table of phases; rate: FLOP/s of the roofline."""
    speed = flops / seconds
    return [name, f"{seconds:.2f}", f"{tokens / seconds:.0f}", f"{speed / 1e12:.3f}", f"{speed / rate:.1%}"]


def phase_heading(dtype: str) -> list[str]:
    return ["phase", "seconds", "tokens/s", "TFLOP/s", f"of the {dtype} product rate"]


def median_seconds(action: Callable[[], object], times: int) -> float:
    """Return the median duration of an action, called twice before to warm up."""
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
    dtype = getattr(torch, work["dtype"])
    size, shapes = size_and_shapes(work["model"])
    flops = {}
    for name in NUM_BYTES:
        square = torch.randn(_SQUARE, _SQUARE).to(getattr(torch, name))
        flops[name] = 2 * _SQUARE**3 / median_seconds(partial(torch.mm, square, square), 7)
    read, copy = bandwidths()
    decoding = {rows: decoding_seconds(shapes, rows, dtype) for rows in work["rows"]}
    return {"size": asdict(size), "flops": flops, "read": read, "copy": copy, "decoding": decoding}


def bandwidths() -> tuple[float, float]:
    """Return the bytes a second of reading a large array, and of copying one, where both sides count."""
    import torch

    source = torch.ones(_ARRAY)
    target = torch.empty_like(source)
    read = source.nbytes / median_seconds(source.sum, 7)
    return read, 2 * source.nbytes / median_seconds(partial(target.copy_, source), 7)


def decoding_seconds(shapes: Sequence[tuple[int, int]], num_rows: int, dtype: torch.dtype) -> float:
    """Time the matrix products of one decoding step; each weight comes from memory, for the caches hold others."""
    import torch

    once = sum(wide * high for wide, high in shapes) * dtype.itemsize
    copies = max(1, min(math.ceil(_COLD_BYTES / once), _MOST_MATRICES // len(shapes)))
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
        elif type(layer).__name__ == "Conv1D":  # GPT-2's linear layer, turned round
            shapes.append((layer.nf, layer.nx))
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    matrix_weights = sum(high * wide for high, wide in shapes)
    head_shape = (head.out_features, head.in_features)
    size = ModelSize(
        matrix_weights, math.prod(head_shape), config.num_hidden_layers, heads * width, 2 * kv_heads * width
    )
    return size, [*shapes, head_shape]


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
