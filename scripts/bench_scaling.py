"""How time and memory of a PPO step grow with the work, on a CPU: one quantity changes, the others stay.

usage: python scripts/bench_scaling.py [--model DIR] [--axis NAME ...] [--ranks 1 2 4] [--steps 3] [--dtype bfloat16]
           [--vocabulary 259] [--micro-tokens 1024] [--out FOLDER] [--quick] [-- key=value ...]

  --model DIR            a causal language model with its tokenizer, for all axes but `model`; default: random weights,
                         Llama architecture, 8 layers of width 256, byte tokenizer
  --axis NAME ...        some of: prompts (a step), response, prompt (tokens each), ranks, model (weights); default: all
  --ranks N ...          the points of the axis `ranks`
  --steps N              steps of a run, of which the first is left out
  --dtype                bfloat16 or float32
  --vocabulary N         of the random models, 259 or more; the tokenizer stays that of bytes
  --micro-tokens N       ppo.micro_batch_tokens
  --out FOLDER           gets scaling.json and one SVG an axis; default: outputs/scaling
  --quick                tiny models, two points an axis: to see that the script works, not to learn from
  -- key=value ...       more options of `rlhf train-ppo`

Points: 8 to 64 prompts a step, 16 to 128 response tokens, 16 to 256 prompt tokens, models from 2 layers of width 64 to
SmolLM2-135M's 30 of width 576. What stays: 16 prompts of 64 tokens, 32 response tokens, that model; for the axis
`model` 8 prompts of 32 tokens, 16 response tokens.

Every point is a run of `rlhf train-ppo` in a process of its own. All its prompts have the same length (nearly, where
the tokenizer does not allow it) and all its responses full length: EOS is a token that is never drawn. Seconds are
medians over the steps; memory is the most that a process held. On the axis `ranks` every rank has one thread and its
share of the prompts, and ZeRO-3 shards every parameter; one rank shards nothing. On the other axes one process has all
cores.

A line a + b x is fitted by least squares (on the axis `ranks` a + b / x, where a is what more ranks do not divide), and
the exponent of a power law to the upper half of the points, where fixed costs weigh least: 1 is linear.

Collectives are counted in every rank: calls, the bytes of the whole tensors that are gathered or reduced, seconds that
the rank's own thread spends in them (waiting for slower ranks among it), and the bytes that a rank sends if they go
round a ring: (n - 1) / n of the tensor, twice that for an all-reduce. Beside it stands what plain ZeRO-3 moves in a
step: the policy's weights once for the rollout, those of all four models once for scoring, in the update those of
policy and value model twice a micro-batch (forward, backward) and their gradients once a micro-batch. This project
gathers less: the policy once from the rollout to its own scoring (or, where that is the update's first pass, to its
backward pass), and each trained model once an update.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_common as common
import bench_ppo as ppo

AXES = ("prompts", "response", "prompt", "ranks", "model")
PHASES = ("rollout", "score", "update", "step")
COUNTED = "--counted"  # the first word of ranks whose collectives are counted
GIVEN = "given"  # the model that --model names
NUM_PROMPTS = 128
BYTE_TOKENS = 259  # of the byte tokenizer
LINEAR = 0.1  # how far from 1 an exponent is still called linear, and from 0 constant
FIXED = (
    *(*ppo.FIXED, "data.apply_chat_template", "deepspeed", "ppo.micro_batch_tokens", "rollout.gather"),
    "deepspeed.zero_optimization.stage3_param_persistence_threshold",
)


# --- what is run


@dataclass(frozen=True)
class Shape:
    """A random model: Llama architecture, heads of width 64, three query heads to one of keys where that fits."""

    width: int
    layers: int

    def __str__(self) -> str:
        return f"{self.width}x{self.layers}"

    def config(self, vocabulary: int) -> dict[str, Any]:
        """Return the keys of a LlamaConfig; 576x30 is SmolLM2-135M's, but for the vocabulary."""
        heads = max(1, self.width // 64)
        return {
            "hidden_size": self.width,
            "intermediate_size": self.width * 8 // 3 // 32 * 32,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(some for some in range(1, max(1, heads // 3) + 1) if heads % some == 0),
            "vocab_size": vocabulary,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        }


@dataclass(frozen=True)
class Point:
    """One run."""

    prompts: int  # a step, all ranks together
    response: int  # tokens
    prompt: int  # tokens
    model: str  # GIVEN or a shape
    ranks: int = 1
    counted: bool = False  # one thread a rank, every parameter sharded, collectives counted

    def __str__(self) -> str:
        work = f"{self.prompts} prompts of {self.prompt} tokens, {self.response} new ones, model {self.model}"
        return f"{work}, ranks: {self.ranks}" if self.counted else work


@dataclass(frozen=True)
class Axis:
    """The runs that differ in one quantity."""

    name: str
    label: str  # of the quantity, with its unit
    points: list[Point]

    @property
    def inverse(self) -> bool:
        """Whether the work is divided by the quantity, not multiplied."""
        return self.name == "ranks"


@dataclass(frozen=True)
class Plan:
    """What all axes have in common, and their points."""

    base: Point
    prompts: Sequence[int]
    response: Sequence[int]
    prompt: Sequence[int]
    models: Sequence[Shape]
    small: Point  # the base of the axis `model`, whose largest one costs much


FULL = Plan(
    Point(16, 32, 64, "256x8"),
    (8, 16, 32, 64),
    (16, 32, 64, 128),
    (16, 64, 128, 256),
    (Shape(64, 2), Shape(128, 4), Shape(256, 8), Shape(384, 16), Shape(576, 30)),
    Point(8, 16, 32, "256x8"),
)
QUICK = Plan(Point(4, 8, 16, "64x2"), (4, 8), (8, 16), (16, 32), (Shape(64, 2), Shape(128, 4)), Point(4, 8, 16, "64x2"))


def axes(plan: Plan, ranks: Sequence[int], given: bool, wanted: Iterable[str]) -> list[Axis]:
    """Return the axes that are wanted, each with its points; given: --model replaces the random base model."""
    base = replace(plan.base, model=GIVEN) if given else plan.base
    every = [
        Axis("prompts", "prompts a step", [replace(base, prompts=value) for value in plan.prompts]),
        Axis("response", "response length, tokens", [replace(base, response=value) for value in plan.response]),
        Axis("prompt", "prompt length, tokens", [replace(base, prompt=value) for value in plan.prompt]),
        Axis("ranks", "ranks, one thread each", [replace(base, ranks=value, counted=True) for value in ranks]),
        Axis("model", "weights of a model, millions", [replace(plan.small, model=str(value)) for value in plan.models]),
    ]
    return [axis for axis in every if axis.name in wanted]


# --- a child process: the models and the prompts


def prepare(work: Mapping[str, Any]) -> dict[str, Any]:
    """Write policy, reward model and prompts of every model; return their weights and the lengths of the prompts.

    work: folder, dtype, vocabulary, given (a model's folder or null), models: {name: lengths of prompts}.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = plain_words(ppo.default_prompts(None).read_text("utf-8"))
    found: dict[str, Any] = {}
    for name, lengths in work["models"].items():
        folder = Path(work["folder"], name)
        folder.mkdir()
        short = folder / "short.jsonl"
        short.write_text(json.dumps({"prompt": words[0]}) + "\n", "utf-8")
        source = Path(work["given"]) if name == GIVEN else random_model(name, work, folder / "random")
        shared = {"folder": str(folder), "model": str(source), "dtype": work["dtype"], "natural": name != GIVEN}
        ppo.prepare({**shared, "prompts": str(short), "prompt_tokens": None, "rows": 1, "seed": 0})
        tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
        classes = {"policy": AutoModelForCausalLM, "reward_model": AutoModelForSequenceClassification}
        found[name] = {
            "weights": {key: num_weights(folder / key, kind) for key, kind in classes.items()},
            "prompt_tokens": {length: write_prompts(folder, words, length, tokenizer) for length in lengths},
        }
    return found


def random_model(name: str, work: Mapping[str, Any], folder: Path) -> Path:
    """Write a random model whose EOS is never drawn; return its folder.

    Every token has a 1 in the first place of its embedding, which no layer writes to, EOS alone a large negative
    number: its logit is far below all others.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from rlhf_cli.models.byte_tokenizer import byte_tokenizer

    tokenizer = byte_tokenizer()
    width, _, layers = name.partition("x")
    ends = {f"{key}_token_id": getattr(tokenizer, f"{key}_token_id") for key in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    config = LlamaConfig(**Shape(int(width), int(layers)).config(work["vocabulary"]), **ends)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, work["dtype"]))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        embedding = model.get_input_embeddings().weight
        embedding[:, 0] = 1
        embedding[tokenizer.eos_token_id] = 0
        embedding[tokenizer.eos_token_id, 0] = -50
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def num_weights(folder: Path, kind: Any) -> int:
    """Return how many weights a model has, tied ones counted once, from its config alone."""
    import torch
    from transformers import AutoConfig

    with torch.device("meta"):
        module = kind.from_config(AutoConfig.from_pretrained(folder))
    return sum(parameter.numel() for parameter in module.parameters())


def plain_words(lines: str) -> list[str]:
    """Return the words of prompts that are one byte a character, so that a text of them can be cut anywhere."""
    texts = [json.loads(line)["prompt"] for line in lines.splitlines() if line.strip()]
    return sorted({word for text in texts for word in text.split() if word.isascii()})


def write_prompts(folder: Path, words: Sequence[str], target: int, tokenizer: Any) -> list[int]:
    """Write prompts of a length; return what each really has."""
    draw = random.Random(target)
    prompts = [cut(words, target, lambda text: len(tokenizer(text)["input_ids"]), draw) for _ in range(NUM_PROMPTS)]
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts]
    prompts_file(folder, target).write_text("".join(lines), "utf-8")
    return [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]


def prompts_file(folder: Path, length: int) -> Path:
    return folder / f"prompts-{length}.jsonl"


def cut(words: Sequence[str], target: int, count: Callable[[str], int], draw: random.Random) -> str:
    """Return random words, cut where they have `target` tokens, or just less where the tokenizer jumps over it."""
    text = " ".join(draw.choices(words, k=target))
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if count(text[:middle]) <= target:
            low = middle
        else:
            high = middle - 1
    return text[:low]


# --- a child process: a rank whose collectives are counted

# of torch.distributed: its name here, the argument that is the whole tensor (or all parts of it), and how many times
# (n - 1) / n of it a rank sends on a ring
COLLECTIVES = {
    "all_gather_single": ("all_gather_single", "output_tensor", 1),
    "all_gather_into_tensor": ("all_gather_single", "output_tensor", 1),
    "all_gather": ("all_gather", "tensor_list", 1),
    "reduce_scatter_single": ("reduce_scatter_single", "input", 1),
    "reduce_scatter_tensor": ("reduce_scatter_single", "input", 1),
    "reduce_scatter": ("reduce_scatter", "input_list", 1),
    "all_reduce": ("all_reduce", "tensor", 2),
    "broadcast": ("broadcast", "tensor", 1),
    "reduce": ("reduce", "tensor", 1),
    "all_to_all_single": ("all_to_all_single", "input", 1),
    "barrier": ("barrier", None, 0),
}


@dataclass
class Tally:
    calls: int = 0
    bytes: int = 0  # of whole tensors
    sent: float = 0.0  # bytes of a rank, on a ring
    seconds: float = 0.0


def payload(argument: Any) -> tuple[int, str]:
    """Return the bytes and the type of a tensor or a list of tensors; 0 and a dash for none."""
    parts = argument if isinstance(argument, list) else [] if argument is None else [argument]
    dtypes = {str(part.dtype).removeprefix("torch.") for part in parts}
    return sum(part.nbytes for part in parts), ", ".join(sorted(dtypes)) or "-"


def sent(num_bytes: int, times: int, num_ranks: int) -> float:
    """Return the bytes that a rank sends on a ring."""
    return times * num_bytes * (num_ranks - 1) / num_ranks


@dataclass
class Meter:
    """Counts what collectives move, by step, phase, name and type. Nothing outside the phases of a step is counted."""

    num_ranks: Callable[[], int]
    step: int = 0
    phase: str | None = None
    found: dict[tuple[int, str, str, str], Tally] = field(default_factory=lambda: defaultdict(Tally))
    _inside: bool = False

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count for a phase; a step starts with its rollout."""
        self.step += phase == "rollout"
        self.phase = phase
        try:
            yield
        finally:
            self.phase = None

    def counted(self, plain: Callable[..., Any], name: str, whole: str | None, times: int) -> Callable[..., Any]:
        """Return a collective that is counted, once where it calls another one."""
        signature = inspect.signature(plain)

        def collective(*args: Any, **kwargs: Any) -> Any:
            if self.phase is None or self._inside:
                return plain(*args, **kwargs)
            argument = None if whole is None else signature.bind(*args, **kwargs).arguments[whole]
            num_bytes, dtype = payload(argument)
            tally = self.found[self.step, self.phase, name, dtype]
            tally.calls += 1
            tally.bytes += num_bytes
            tally.sent += sent(num_bytes, times, self.num_ranks())
            self._inside = True
            start = time.perf_counter()
            try:
                work = plain(*args, **kwargs)
            finally:
                self._inside = False
                tally.seconds += time.perf_counter() - start
            return None if work is None else TimedWork(work, tally)

        return collective

    def rows(self) -> list[dict[str, Any]]:
        """Return the counts, ready for JSON."""
        names = ("step", "phase", "name", "dtype")
        return [dict(zip(names, key, strict=True)) | asdict(tally) for key, tally in self.found.items()]


class TimedWork:
    """A collective that is under way: waiting for it counts."""

    def __init__(self, work: Any, tally: Tally) -> None:
        self._work, self._tally = work, tally

    def wait(self, *args: Any) -> Any:
        start = time.perf_counter()
        try:
            return self._work.wait(*args)
        finally:
            self._tally.seconds += time.perf_counter() - start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def counted_ranks(folder: Path, num_ranks: int, args: Sequence[str]) -> int:
    """Run so many counted ranks; return the exit code of the first one that fails, after which none is left, or 0."""
    from rlhf_cli.system.processes import SUPERVISED, free_port

    words = [sys.executable, __file__, COUNTED, str(folder), str(num_ranks), *args]
    shared = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), SUPERVISED: str(os.getpid())}  # they end with this process
    ranks = []
    for number in map(str, range(num_ranks)):
        environment = {**os.environ, **shared, "RANK": number, "LOCAL_RANK": number}
        ranks.append(subprocess.Popen(words, env=environment))
    codes: list[int | None] = [None]
    while None in codes and not any(codes):
        time.sleep(0.05)
        codes = [rank.poll() for rank in ranks]
    for rank in ranks:
        rank.kill()  # of no effect on one that has ended
    return next((abs(code) for code in codes if code), 0)


def counted_rank(folder: Path, args: list[str]) -> NoReturn:
    """Be one rank of `rlhf`, and leave its counts in a file."""
    import torch.distributed
    from torch.distributed import distributed_c10d

    meter = Meter(torch.distributed.get_world_size)
    for name, how in COLLECTIVES.items():  # before DeepSpeed keeps some of them
        counted = meter.counted(getattr(distributed_c10d, name), *how)
        for module in (torch.distributed, distributed_c10d):
            setattr(module, name, counted)
    watch_phases(meter)
    from rlhf_cli.cli import main
    from rlhf_cli.system.signals import exit_now

    code = main(args)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {"peak_gib": peak_gib, "rows": meter.rows()}
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))
    exit_now(code)


def watch_phases(meter: Meter) -> None:
    """Let the trainer's clock tell the phases."""
    import rlhf_cli.run.launch  # noqa: F401  settings that DeepSpeed reads when it is imported
    from rlhf_cli.report.reporter import Reporter

    plain = Reporter.time

    @contextmanager
    def timed(self: Reporter, phase: str) -> Iterator[None]:
        with meter.during(phase), plain(self, phase):
            yield

    Reporter.time = timed  # type: ignore[method-assign]


# --- the runs


def our_words(options: argparse.Namespace, folder: Path, point: Point) -> list[str]:
    """Return the options of `rlhf train-ppo`."""
    sharded = ["deepspeed=zero3", "++deepspeed.zero_optimization.stage3_param_persistence_threshold=0"]
    model = folder / point.model
    overrides = [
        f"data.train={prompts_file(model, point.prompt)}",
        "data.apply_chat_template=false",
        *("model.packing=false", "reward_model.packing=false"),  # the arithmetic below is that of whole texts
        *(sharded if point.counted else []),
        *options.overrides,
    ]
    shared = argparse.Namespace(
        prompt_tokens=[point.prompt, point.prompt],
        dtype=options.dtype,
        ranks=point.ranks,
        iters=options.steps,
        micro_tokens=options.micro_tokens,
        overrides=overrides,
        float32_states=True,  # as several ranks have them
    )
    return [
        *ppo.our_words(shared, ppo.Prepared(model, [], "", 0), ppo.Shape(point.prompts, point.response)),
        "run.name=run",
    ]


def run(options: argparse.Namespace, folder: Path, point: Point) -> dict[str, Any]:
    """Run one point; return the seconds of each phase in all steps but the first, memory, and what ranks counted."""
    words = ["train-ppo", *our_words(options, folder, point)]
    environment = common.environment(sys.executable, point.ranks)
    counts = folder / "counts"
    counts.mkdir()
    launch = [sys.executable, "-m", "rlhf_cli"]
    if point.counted:
        environment["OMP_NUM_THREADS"] = "1"
        launch = [sys.executable, str(Path(__file__).resolve()), COUNTED, str(counts), str(point.ranks)]
    done = common.run_child([*launch, *words], folder / "run.log", environment, folder)
    outputs = folder / point.model / "outputs"
    lines = (outputs / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    ranks = [json.loads(file.read_text()) for file in sorted(counts.iterdir())]
    shutil.rmtree(outputs)  # with the trained weights in it
    shutil.rmtree(counts)
    records = [record for record in map(json.loads, lines) if "time/step" in record][1:]
    return figures(records, done, ranks)


def figures(
    records: Sequence[Mapping[str, Any]], done: common.Finished, ranks: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what is kept of a run; records: of its steps but the first; ranks: what each has counted."""
    found = {
        "seconds": {phase: [record[f"time/{phase}"] for record in records] for phase in PHASES},
        "tokens_per_s": [record["tokens_per_s"] for record in records],
        "response_tokens": [record["response_length"] for record in records],
        "peak_gib": done.peak_gib,
        "run_s": done.seconds,
    }
    if ranks:
        found["peak_gib"] = max(rank["peak_gib"] for rank in ranks)
        found["all_ranks_gib"] = sum(rank["peak_gib"] for rank in ranks)
        found["collectives"] = collectives([rank["rows"] for rank in ranks], len(records))
    return found


def collectives(ranks: Sequence[Sequence[Mapping[str, Any]]], num_steps: int) -> list[dict[str, Any]]:
    """Return means over ranks and over all steps but the first, by phase, name and type."""
    totals: dict[tuple[str, str, str], Tally] = defaultdict(Tally)
    for row in (row for rows in ranks for row in rows if row["step"] > 1):
        tally = totals[row["phase"], row["name"], row["dtype"]]
        for key in asdict(tally):
            setattr(tally, key, getattr(tally, key) + row[key])
    times = len(ranks) * num_steps
    return [
        {"phase": phase, "name": name, "dtype": dtype, **{key: value / times for key, value in asdict(tally).items()}}
        for (phase, name, dtype), tally in sorted(totals.items())
    ]


# --- what ZeRO-3 has to move

GATHERED, REDUCED, OTHER = "all_gather_single", "reduce_scatter_single", "all else"


def num_micro_batches(rows: int, tokens: int, most_tokens: int) -> int:
    """Return the forward passes of so many rows of a length, as many of them at a time as fit."""
    return math.ceil(rows / max(1, most_tokens // tokens))


def zero3_bytes(policy: int, scorer: int, num_micro: int, num_bytes: int) -> dict[tuple[str, str], int]:
    """Return the bytes of whole tensors that plain ZeRO-3 gathers and reduces in a step, one update in it.

    policy, scorer: weights of policy (and reference), of reward model (and value model); num_micro: micro-batches of
    the update; num_bytes: of a weight and of a gradient.
    """
    return {
        ("rollout", GATHERED): policy * num_bytes,
        ("score", GATHERED): 2 * (policy + scorer) * num_bytes,
        ("update", GATHERED): 2 * num_micro * (policy + scorer) * num_bytes,
        ("update", REDUCED): num_micro * (policy + scorer) * num_bytes,
    }


def against_zero3(
    counted: Sequence[Mapping[str, Any]], expected: Mapping[tuple[str, str], int], num_ranks: int
) -> list[dict[str, Any]]:
    """Join counts and arithmetic: a row for each phase and kind, one for all else."""
    if num_ranks == 1:
        expected = dict.fromkeys(expected, 0)
    rows = []
    for key in [*expected, ("", OTHER)]:
        mine = [row for row in counted if (row["phase"], row["name"]) == key]
        if key[1] == OTHER:
            mine = [row for row in counted if (row["phase"], row["name"]) not in expected]
        sums = {name: sum(row[name] for row in mine) for name in ("calls", "bytes", "sent", "seconds")}
        whole = expected.get(key)
        arithmetic = None if whole is None else sent(whole, 1, num_ranks)
        rows.append({"phase": key[0], "name": key[1], **sums, "zero3_bytes": whole, "zero3_sent": arithmetic})
    return rows


# --- fits


@dataclass(frozen=True)
class Fit:
    """A line through the points, and a power law through the upper half of them."""

    fixed: float
    slope: float
    inverse: bool  # fixed + slope / x, not x
    deviation: float  # of the line, the largest, as a share of the point
    exponent: float | None  # None where a value is not positive
    verdict: str

    def at(self, x: float) -> float:
        return self.fixed + self.slope * (1 / x if self.inverse else x)

    def __str__(self) -> str:
        return (
            f"{self.fixed:.3g} {'-' if self.slope < 0 else '+'} {abs(self.slope):.3g} {'/' if self.inverse else '*'} x"
        )


def least_squares(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Return a and b of the line a + b x."""
    slope, fixed = statistics.linear_regression(xs, ys)
    return fixed, slope


def fitted(xs: Sequence[float], ys: Sequence[float], inverse: bool = False) -> Fit | None:
    """Fit the points, ordered by x; None where fewer than two differ in x."""
    if len(set(xs)) < 2:
        return None
    fixed, slope = least_squares([1 / x for x in xs] if inverse else xs, ys)
    line = Fit(fixed, slope, inverse, 0.0, None, "")
    deviation = max(abs(line.at(x) - y) / abs(y) if y else math.inf for x, y in zip(xs, ys, strict=True))
    upper = list(zip(xs, ys, strict=True))[-max(2, math.ceil(len(xs) / 2)) :]
    exponent = None
    if min(min(pair) for pair in upper) > 0:
        exponent = least_squares([math.log(x) for x, _ in upper], [math.log(y) for _, y in upper])[1]
    has_line = len(xs) > 2 and fixed > 0 and slope > 0 and deviation <= LINEAR
    return Fit(fixed, slope, inverse, deviation, exponent, verdict(exponent, has_line, inverse))


def verdict(exponent: float | None, has_line: bool, inverse: bool = False) -> str:
    """Say in words how a quantity grows; has_line: a straight line with a fixed part meets all points.

    inverse: it should fall, at best with exponent -1.
    """
    if exponent is None:
        return "-"
    if abs(exponent) <= LINEAR:
        how = "constant"
    elif exponent < 0:
        how = "falls"
    elif inverse:
        how = "grows"
    elif abs(exponent - 1) <= LINEAR:
        how = "linear"
    elif exponent > 1:
        how = "super-linear"
    else:
        how = "linear beside a fixed part" if has_line else "sub-linear"
    return f"{how}: exponent {exponent:.2f}".replace("-0.00", "0.00")


def position(axis: Axis, point: Point, models: Mapping[str, Any]) -> float:
    """Return where a point stands on its axis; models: what `prepare` returned."""
    known = models[point.model]
    places: dict[str, float] = {
        "prompts": float(point.prompts),
        "response": float(point.response),
        "prompt": statistics.mean(known["prompt_tokens"][str(point.prompt)]),
        "ranks": float(point.ranks),
        "model": known["weights"]["policy"] / 1e6,
    }
    return places[axis.name]


QUANTITIES = (*PHASES, "memory")


def values(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the medians that are fitted."""
    seconds = {phase: statistics.median(spent) for phase, spent in result["seconds"].items()}
    return {**seconds, "memory": result["peak_gib"]}


def fits(axis: Axis, xs: Sequence[float], results: Sequence[Mapping[str, Any]]) -> dict[str, Fit | None]:
    """Fit the seconds of every phase, and memory, which no rank takes from another by halves: a line of its own."""
    found = {}
    for name in QUANTITIES:
        found[name] = fitted(xs, [values(result)[name] for result in results], axis.inverse and name != "memory")
    return found


# --- the text


def short(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def axis_table(axis: Axis, xs: Sequence[float], results: Sequence[Mapping[str, Any]]) -> str:
    """Return seconds, speed and memory of every point."""
    more = ["speed-up", "of ideal", "all ranks, GiB"] if axis.inverse else []
    rows = [[axis.label, *(f"{phase} s" for phase in PHASES), "tokens/s", "peak, GiB", *more]]
    for x, result in zip(xs, results, strict=True):
        known = values(result)
        cells = [short(x), *(f"{known[phase]:.2f}" for phase in PHASES[:-1])]
        cells += [common.shown(result["seconds"]["step"]), f"{statistics.median(result['tokens_per_s']):.1f}"]
        cells.append(f"{known['memory']:.2f}")
        if axis.inverse:
            gain = values(results[0])["step"] / known["step"]
            ideal = x / xs[0]
            cells += [f"{gain:.2f}", f"{gain / ideal:.0%}", f"{result['all_ranks_gib']:.2f}"]
        rows.append(cells)
    return common.table(rows)


def fit_table(found: Mapping[str, Fit | None]) -> str:
    """Return line, its largest deviation and verdict of every quantity."""
    rows = [["", "line", "off by at most", "verdict"]]
    for name, fit in found.items():
        unit = "GiB" if name == "memory" else "s"
        rows.append(
            [f"{name}, {unit}", *(["-"] * 3 if fit is None else [str(fit), f"{fit.deviation:.0%}", fit.verdict])]
        )
    width = max(len(row[-1]) for row in rows)
    return common.table([[*row[:-1], row[-1].ljust(width)] for row in rows])


def volume_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what the ranks moved beside what plain ZeRO-3 moves."""
    lines = [["a step, each rank", "calls", "tensors, MB", "ZeRO-3, MB", "ratio", "sent, MB", "ZeRO-3, MB", "seconds"]]
    for row in rows:
        whole, arithmetic = row["zero3_bytes"], row["zero3_sent"]
        lines.append(
            [
                f"{row['phase']} {row['name']}".strip(),
                short(row["calls"]),
                f"{row['bytes'] / 1e6:.3f}",
                "-" if whole is None else f"{whole / 1e6:.3f}",
                common.shown_ratio(row["bytes"] / whole if whole else None),
                f"{row['sent'] / 1e6:.3f}",
                "-" if arithmetic is None else f"{arithmetic / 1e6:.3f}",
                f"{row['seconds']:.3f}",
            ]
        )
    return common.table(lines)


def summary(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the verdicts on a step's time and memory along every axis."""
    rows = [["axis", "seconds a step", "peak memory"]]
    for axis in found:
        rows.append(
            [axis["axis"], *((axis["fits"][name] or {"verdict": "-"})["verdict"] for name in ("step", "memory"))]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return common.table([[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows])


# --- the pictures

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#333333", "#d55e00")
WIDTH, HEIGHT, LEFT, TOP, GAP, LINE = 380, 280, 70, 44, 100, 18  # of a panel, around it, of its legend


@dataclass(frozen=True)
class Series:
    """Points and the line through them."""

    name: str
    points: Sequence[tuple[float, float]]
    fit: Fit | None
    colour: str


@dataclass(frozen=True)
class Panel:
    """One diagram; both axes start at 0."""

    x_label: str
    y_label: str
    series: Sequence[Series]


def ticks(highest: float) -> list[float]:
    """Return four to ten round numbers from 0 to at least `highest`: steps of 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest / 5))
    step = next(size * power for size in (1, 2, 5, 10, 20) if highest / (size * power) <= 7)
    return [number * step for number in range(math.ceil(highest / step - 1e-9) + 1)]


def svg(title: str, panels: Sequence[Panel]) -> str:
    """Return panels side by side as a picture."""
    wide = LEFT + len(panels) * (WIDTH + GAP) - GAP + 30
    high = TOP + HEIGHT + 64 + LINE * max(len(panel.series) for panel in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{wide}" height="{high}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts += drawn(panel, LEFT + number * (WIDTH + GAP))
    return "\n".join([*parts, "</svg>", ""])


def drawn(panel: Panel, left: int) -> list[str]:
    """Return one panel's elements."""
    points = [point for series in panel.series for point in series.points]
    x_ticks, y_ticks = (ticks(max(point[side] for point in points)) for side in (0, 1))
    bottom = TOP + HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return left + WIDTH * x / x_ticks[-1], bottom - HEIGHT * y / y_ticks[-1]

    parts = []
    for tick in x_ticks:
        x, _ = place(tick, 0)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        _, y = place(0, tick)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + WIDTH}" y2="{y:.1f}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<path d="M{left} {TOP}V{bottom}H{left + WIDTH}" fill="none" stroke="#333333"/>')
    middle = TOP + HEIGHT / 2
    parts.append(
        f'<text x="{left + WIDTH / 2}" y="{bottom + 42}" text-anchor="middle">{escape(panel.x_label)}</text>'
        f'<text transform="translate({left - 48} {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(panel.y_label)}</text>"
    )
    for number, series in enumerate(panel.series):
        parts += marks(series, place)
        y = bottom + 70 + LINE * number
        parts.append(f'<circle cx="{left + 4}" cy="{y - 4}" r="4" fill="{series.colour}"/>')
        parts.append(f'<text x="{left + 16}" y="{y}">{escape(series.name)}</text>')
    return parts


def marks(series: Series, place: Callable[[float, float], tuple[float, float]]) -> list[str]:
    """Return the fitted line, from the first point to the last and no lower than 0, and the points."""
    parts = []
    if series.fit is not None:
        low, high = series.points[0][0], series.points[-1][0]
        xs = [low + (high - low) * part / 40 for part in range(41)]
        line = [place(x, series.fit.at(x)) for x in xs if series.fit.at(x) >= 0]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{series.colour}" stroke-opacity="0.6"/>')
    for x, y in series.points:
        across, down = place(x, y)
        parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="4" fill="{series.colour}"/>')
    return parts


def picture(
    axis: Axis, xs: Sequence[float], results: Sequence[Mapping[str, Any]], found: Mapping[str, Fit | None]
) -> str:
    """Return the diagrams of an axis: seconds of every phase, memory."""
    series = []
    for name, colour in zip(QUANTITIES, COLOURS, strict=True):
        fit = found[name]
        points = [(x, values(result)[name]) for x, result in zip(xs, results, strict=True)]
        series.append(Series(name if fit is None else f"{name}: {fit}", points, fit, colour))
    return svg(
        f"A PPO step against: {axis.label}",
        [
            Panel(axis.label, "seconds a step", series[:-1]),
            Panel(axis.label, "peak memory of a process, GiB", series[-1:]),
        ],
    )


# --- the whole


def measured(
    axis: Axis, options: argparse.Namespace, folder: Path, models: Mapping[str, Any], known: dict[Point, dict[str, Any]]
) -> dict[str, Any]:
    """Run the points that are not known yet; print tables, draw the picture, return all figures of the axis."""
    print(f"\n== {axis.label}")
    for point in axis.points:
        if point not in known:
            known[point] = run(options, folder, point)
            tell(point, known[point])
    xs, results = [position(axis, point, models) for point in axis.points], [known[point] for point in axis.points]
    found = fits(axis, xs, results)
    print(f"{axis_table(axis, xs, results)}\n\n{fit_table(found)}")
    (options.out / f"{axis.name}.svg").write_text(picture(axis, xs, results, found), "utf-8")
    rows = [{"x": x, "point": asdict(point), **known[point]} for x, point in zip(xs, axis.points, strict=True)]
    if axis.inverse:
        for row, point in zip(rows, axis.points, strict=True):
            row["volume"] = volume(options, models[point.model], point, known[point])
    return {
        "axis": axis.name,
        "label": axis.label,
        "points": rows,
        "fits": {name: None if fit is None else asdict(fit) for name, fit in found.items()},
    }


def tell(point: Point, result: Mapping[str, Any]) -> None:
    print(f"run: {point}: {common.shown(result['seconds']['step'])} s a step, {result['run_s']:.0f} s in all")
    if any(length != point.response for length in result["response_tokens"]):
        print("warning: the stand-in for EOS was drawn: some responses are shorter")


def volume(
    options: argparse.Namespace, model: Mapping[str, Any], point: Point, result: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Print and return what the ranks of a point moved, beside the arithmetic."""
    tokens = max(model["prompt_tokens"][str(point.prompt)]) + point.response
    num_micro = num_micro_batches(point.prompts // point.ranks, tokens, options.micro_tokens)
    sizes = model["weights"]
    expected = zero3_bytes(sizes["policy"], sizes["reward_model"], num_micro, common.NUM_BYTES[options.dtype])
    rows = against_zero3(result["collectives"], expected, point.ranks)
    inside, step = sum(row["seconds"] for row in rows), values(result)["step"]
    print(
        f"\nranks: {point.ranks}; micro-batches of the update: {num_micro}; {inside:.2f} of {step:.2f} s in collectives"
    )
    if point.ranks > 1:
        print(volume_table(rows))
    return rows


def prepared(options: argparse.Namespace, plan: Sequence[Axis], folder: Path) -> dict[str, Any]:
    """Have a child process write models and prompts."""
    models: dict[str, set[int]] = defaultdict(set)
    for point in (point for axis in plan for point in axis.points):
        models[point.model].add(point.prompt)
    work = {
        "folder": str(folder),
        "dtype": options.dtype,
        "vocabulary": options.vocabulary,
        "given": str(options.model.resolve()) if options.model else None,
        "models": {name: sorted(lengths) for name, lengths in models.items()},
    }
    return common.task(__file__, work, folder / "prepare.log")


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; end with exit code 2 for what cannot be done."""
    parser = common.Parser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--axis", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--ranks", type=int, nargs="+")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dtype", choices=common.NUM_BYTES, default="bfloat16")
    parser.add_argument("--vocabulary", type=int, default=BYTE_TOKENS)
    parser.add_argument("--micro-tokens", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("outputs/scaling"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args(argv)
    options.ranks = sorted(set(options.ranks or ([1, 2] if options.quick else [1, 2, 4])))
    for complaint in complaints(options):
        parser.error(complaint)
    return options


def complaints(options: argparse.Namespace) -> Iterator[str]:
    """Say what does not fit."""
    rows = (QUICK if options.quick else FULL).base.prompts
    if options.model and not options.model.is_dir():
        yield f"--model {options.model}: no such folder"
    if options.steps < 2:
        yield "--steps: wanted 2 or more, the first step is left out"
    if options.vocabulary < BYTE_TOKENS:
        yield f"--vocabulary: wanted {BYTE_TOKENS} or more, as many as the byte tokenizer has"
    yield from (f"--ranks {n} do not divide the {rows} prompts of a step" for n in options.ranks if n < 1 or rows % n)
    yield from (f"{word}: wanted key=value" for word in options.overrides if "=" not in word)
    fixed = set(FIXED).intersection(key.lstrip("+") for key in common.settings(options.overrides))
    yield from (f"{key} follows from the options of this script" for key in sorted(fixed))


def main() -> None:
    if sys.argv[1:2] == [COUNTED]:
        if "RANK" in os.environ:
            counted_rank(Path(sys.argv[2]), sys.argv[4:])
        sys.exit(counted_ranks(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
    if sys.argv[1:] and sys.argv[1].startswith("{"):  # the child process
        print(json.dumps(prepare(json.loads(sys.argv[1]))))
        return
    options = parsed()
    common.begin()
    found = common.heading("bench_scaling", options, None)
    if "ranks" in options.axis and max(options.ranks) > common.cores():
        print("there are more ranks than cores: they take turns, and no speed-up can come of it")
    plan = axes(QUICK if options.quick else FULL, options.ranks, options.model is not None, options.axis)
    options.out.mkdir(parents=True, exist_ok=True)
    start, found["axes"] = time.perf_counter(), []
    known: dict[Point, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        models = prepared(options, plan, Path(name))
        for axis in plan:
            found["axes"].append(measured(axis, options, Path(name), models, known))
            (options.out / "scaling.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(f"\n== all axes, {time.perf_counter() - start:.0f} s\n{summary(found['axes'])}")
    print(f"pictures and scaling.json: {options.out}")


if __name__ == "__main__":
    main()
