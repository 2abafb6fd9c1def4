"""PPO of this project beside TRL's on the same work, on a CPU: speed, peak memory, and how near to the roofline.

usage: python scripts/bench_ppo.py --model DIR [--peer-python PY] [--peer-scripts DIR] [--ranks 1] [--batch 16]
           [--resp 48] [--shape 32x128 ...] [--iters 3] [--rounds 2] [--natural] [--dtype bfloat16]
           [--prompts FILE.jsonl] [--prompt-tokens LOW HIGH] [--micro-tokens 2560] [--peer-micro 4] [--seed 0]
           [--float32-states] [--out FILE] [-- key=value ...]

  --model DIR            a causal language model with its tokenizer and chat template; policy and reference, and with
                         a fresh head reward and value model
  --peer-python PY       the interpreter of an environment with TRL; without it only this project's side is run
  --peer-scripts DIR     holds trl_ppo.py and zero3_cpu.yaml; default: ../shared/bench beside the repository
  --ranks N              1: one process with all cores; more: ZeRO-3 with the cores divided among the ranks
  --batch, --resp        prompts a step, tokens of a response at most
  --shape ROWSxTOKENS    instead of --batch and --resp; again for more shapes, with a summary at the end
  --iters, --rounds      steps of a run, of which the first is left out; runs of each side, in turn
  --natural              responses end at the model's own EOS (TRL decodes all tokens even then); else every response
                         has full length, so that both sides have the same tokens: the EOS is one that is never drawn
  --prompts FILE         lines with a `prompt`; default: prompts.jsonl of the peer's scripts, or the embedded ones
  --prompt-tokens L H    instead: prompts of L to H tokens (or what the chat template takes), random words of those
  --micro-tokens         ppo.micro_batch_tokens; the peer has --peer-micro rows instead
  --float32-states       in bfloat16 on one process, keep float32 master weights and moments, this project's default
  --out FILE             append the JSON line to a file
  -- key=value ...       more options of `rlhf train-ppo`

The same on both sides: the model four times, prompts of at most 96 tokens (or H), one PPO epoch and one update a step,
learning rate 1e-6, type, type of AdamW's state: TRL keeps float32 weights and moments under ZeRO-3 only. This project's
step is the sum of its phases, TRL's the time from one to the next. FLOPs are those of the tokens that count,
without padding: 2 a weight and token, attention besides; scoring is four forward passes, the update three times that
of policy and value model. What texts begin with alike counts in each of them; this project reads it once, so its share
of the product rate can pass 1 here: the lines `perf/` count what is read. Memory is that of the largest process. The
last line is everything as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_common as common

MAX_PROMPT = 96  # tokens to which the peer's script cuts a prompt
NUM_MADE_UP = 128  # prompts, or four batches
NEVER_DRAWN = "<jupyter_script>"  # SmolLM2's: it opens a document and follows nothing
PHASES = ("rollout", "score", "update", "step")
FIXED = (
    *("model.path", "reward_model.path", "model.dtype", "reward_model.dtype", "data.train", "data.max_prompt_tokens"),
    *("run.name", "run.output_dir", "launch.num_gpus", "rollout.max_new_tokens"),
    *("ppo.num_steps", "ppo.batch_size", "ppo.minibatch_size", "ppo.num_epochs"),
)


@dataclass(frozen=True)
class Shape:
    """The work of one step."""

    rows: int
    tokens: int  # of a response, at most

    @staticmethod
    def of(text: str) -> Shape:
        """Read ROWSxTOKENS."""
        rows, _, tokens = text.partition("x")
        shape = Shape(int(rows), int(tokens))
        if shape.rows < 1 or shape.tokens < 1:
            raise ValueError(text)
        return shape

    def __str__(self) -> str:
        return f"{self.rows}x{self.tokens}"


@dataclass(frozen=True)
class Prepared:
    """What both sides read, in one temporary folder."""

    folder: Path
    prompt_tokens: list[int]  # of each prompt
    end_token: str
    num_dropped: int

    @property
    def mean_prompt(self) -> float:
        return statistics.mean(self.prompt_tokens)


# --- a child process: the copies of the model, and the prompts


def end_stand_in(added: Sequence[tuple[int, str, bool]], used: Iterable[int], template: str, num_tokens: int) -> int:
    """Return the id of a token that is never drawn, to stand for EOS.

    The last special token that the model does not use (added: id, text, is special; used: EOS, BOS, pad; template: the
    chat template), or the last id of the vocabulary.
    """
    taken = set(used)
    free = [(token, text) for token, text, special in added if special and token not in taken and text not in template]
    known = [token for token, text in free if text == NEVER_DRAWN]
    return known[0] if known else free[-1][0] if free else max(set(range(num_tokens)) - taken)


def ended_otherwise(template: str, eos: str, end: str) -> str:
    """Return a chat template of ChatML's kind in which an answer ends in another token than EOS; prompts stay."""
    for quote in "'\"":
        wanted, other = f"{quote}{eos}{quote}", f"{quote}{end}{quote}"
        template = template.replace(wanted, f"({other} if message['role'] == 'assistant' else {wanted})")
    return template


def made_up(words: Sequence[str], target: int, count: Callable[[str], int], draw: random.Random) -> str:
    """Return a prompt of random words with at most `target` tokens, nearly as many as that, and at least one word."""
    drawn = draw.choices(words, k=target)
    low, high = 1, target
    while low < high:
        middle = (low + high + 1) // 2
        if count(" ".join(drawn[:middle])) <= target:
            low = middle
        else:
            high = middle - 1
    return " ".join(drawn[:low])


def prepare(work: dict[str, Any]) -> dict[str, Any]:
    """Write policy, reward model and prompts; work: the fields that `prepared` hands over."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    folder, dtype = Path(work["folder"]), getattr(torch, work["dtype"])
    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    lengths, num_dropped = write_prompts(work, tokenizer, folder / "prompts.jsonl")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    policy = AutoModelForCausalLM.from_pretrained(work["model"], dtype=dtype)
    torch.manual_seed(0)
    scorer = AutoModelForSequenceClassification.from_pretrained(work["model"], num_labels=1, dtype=dtype)
    scorer.config.pad_token_id = tokenizer.pad_token_id
    if not work["natural"]:
        listed = policy.generation_config.eos_token_id
        ends = listed if isinstance(listed, list) else [listed]
        used = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, *ends} - {None}
        added = [(number, token.content, token.special) for number, token in tokenizer.added_tokens_decoder.items()]
        rows = policy.get_input_embeddings().weight.shape[0]
        end = end_stand_in(sorted(added), used, tokenizer.chat_template or "", min(len(tokenizer), rows))
        eos, tokenizer.eos_token = tokenizer.eos_token, tokenizer.convert_ids_to_tokens(end)
        if tokenizer.chat_template is not None:  # what it ends an answer with ends a response, too
            tokenizer.chat_template = ended_otherwise(tokenizer.chat_template, eos, tokenizer.eos_token)
        for config in (policy.generation_config, policy.config, scorer.config):
            config.eos_token_id = end
    for model, name in ((policy, "policy"), (scorer, "reward_model")):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {"prompt_tokens": lengths, "end_token": tokenizer.eos_token, "num_dropped": num_dropped}


def write_prompts(work: dict[str, Any], tokenizer: Any, file: Path) -> tuple[list[int], int]:
    """Write the prompts that fit, as both sides read them; return the tokens of each, and how many did not fit."""

    def count(prompt: str) -> int:
        if tokenizer.chat_template is None:
            return len(tokenizer(prompt)["input_ids"])
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    lines = Path(work["prompts"]).read_text("utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines if line.strip()]
    highest = MAX_PROMPT
    if work["prompt_tokens"]:
        lowest, highest = work["prompt_tokens"]
        words = sorted({word for prompt in prompts for word in prompt.split()})
        draw = random.Random(work["seed"])
        targets = [draw.randint(lowest, highest) for _ in range(max(NUM_MADE_UP, 4 * work["rows"]))]
        prompts = [made_up(words, target, count, draw) for target in targets]
    kept = [(prompt, length) for prompt, length in ((prompt, count(prompt)) for prompt in prompts) if length <= highest]
    if len(kept) < work["rows"]:
        raise SystemExit(f"{len(kept)} prompts of at most {highest} tokens; a step has {work['rows']}")
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt, _ in kept), "utf-8")
    return [length for _, length in kept], len(prompts) - len(kept)


# --- the runs


def prepared(options: argparse.Namespace, shapes: Sequence[Shape], folder: Path) -> Prepared:
    """Have a child process write models and prompts."""
    prompts = options.prompts or default_prompts(None if options.prompt_tokens else options.peer_scripts)
    work = {
        "folder": str(folder),
        "model": str(options.model.resolve()),
        "dtype": options.dtype,
        "natural": options.natural,
        "prompts": str(prompts.resolve()),
        "prompt_tokens": options.prompt_tokens,
        "rows": max(shape.rows for shape in shapes),
        "seed": options.seed,
    }
    return Prepared(folder, **common.task(__file__, work, folder / "prepare.log"))


def default_prompts(peer_scripts: Path | None) -> Path:
    """Return the peer's prompts, or those that come with the package."""
    if peer_scripts is not None and (peer_scripts / "prompts.jsonl").is_file():
        return peer_scripts / "prompts.jsonl"
    from rlhf_cli.config.paths import resolve_path

    return Path(resolve_path("pkg://rlhf_cli.demo/prompts_train.jsonl", "data.train"))


def our_words(options: argparse.Namespace, given: Prepared, shape: Shape) -> list[str]:
    """Return the options of `rlhf train-ppo`, without its run's name."""
    highest = options.prompt_tokens[1] if options.prompt_tokens else MAX_PROMPT
    words = [
        f"model.path={given.folder / 'policy'}",
        f"reward_model.path={given.folder / 'reward_model'}",
        f"model.dtype={options.dtype}",
        f"reward_model.dtype={options.dtype}",
        f"data.train={given.folder / 'prompts.jsonl'}",
        "data.eval_fraction=0",
        f"data.max_prompt_tokens={highest}",
        "deepspeed=zero3",
        f"launch.num_gpus={options.ranks}",
        f"run.output_dir={given.folder / 'outputs'}",
        f"ppo.num_steps={options.iters}",
        f"ppo.batch_size={shape.rows}",
        f"ppo.minibatch_size={shape.rows}",
        f"ppo.micro_batch_tokens={options.micro_tokens}",
        "ppo.num_epochs=1",
        f"rollout.max_new_tokens={shape.tokens}",
        f"rollout.micro_batch_size={shape.rows // options.ranks}",
        "optim.learning_rate=1e-6",
        "value_optim.learning_rate=1e-6",
        *("check.num_prompts=0", "eval.num_prompts=0", "checkpoint.every_steps=0", "guard.action=warn"),
    ]
    if options.ranks == 1 and options.dtype == "bfloat16" and not options.float32_states:
        words += ["optim.state_dtype=bfloat16", "value_optim.state_dtype=bfloat16"]
    return common.overridden(words, options.overrides)


def run_ours(options: argparse.Namespace, given: Prepared, shape: Shape, name: str) -> dict[str, Any]:
    """Run this project's command once; return the records of its steps but the first, and what it took."""
    words = [sys.executable, "-m", "rlhf_cli", "train-ppo", *our_words(options, given, shape), f"run.name={name}"]
    log = given.folder / f"{name}.log"
    done = common.run_child(words, log, common.environment(sys.executable, options.ranks))
    run = given.folder / "outputs" / name
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    shutil.rmtree(run)  # with the trained weights in it
    steps = [record for record in records if "time/step" in record][1:]
    return {"records": steps, "peak_gib": done.peak_gib, "run_s": done.seconds}


def peer_words(options: argparse.Namespace, given: Prepared, shape: Shape, peer: common.Peer) -> list[str]:
    """Return the peer's command line for the same work."""
    script = peer.scripts / "trl_ppo.py"
    if options.prompt_tokens:
        script = given.folder / script.name
        script.write_text(longer_prompts((peer.scripts / script.name).read_text("utf-8"), options.prompt_tokens[1]))
    share, bf16 = shape.rows // options.ranks, options.dtype == "bfloat16"
    micro = common.micro_batch(share, options.peer_micro)
    return [
        *peer.words(script, options.ranks, share // micro, bf16, given.folder),
        *("--model", str(options.model.resolve()), "--prompts", str(given.folder / "prompts.jsonl")),
        *("--batch", str(shape.rows), "--micro", str(micro), "--resp", str(shape.tokens)),
        *("--iters", str(options.iters), "--lr", "1e-6", "--out", str(given.folder / "peer_out")),
        *(["--bf16"] if bf16 else []),
    ]


def longer_prompts(script: str, num_tokens: int) -> str:
    """Return the peer's script with another length to which prompts are cut."""
    if script.count(f"[:{MAX_PROMPT}]") != 1:
        raise SystemExit(f"the peer's script does not cut prompts with [:{MAX_PROMPT}], as --prompt-tokens takes it to")
    return script.replace(f"[:{MAX_PROMPT}]", f"[:{num_tokens}]")


def run_theirs(
    options: argparse.Namespace, given: Prepared, shape: Shape, peer: common.Peer, name: str
) -> dict[str, Any]:
    """Run the peer once; return the seconds of its steps but the first, and what it took."""
    environment = common.environment(str(peer.python), options.ranks)
    words = peer_words(options, given, shape, peer)
    done = common.run_child(words, given.folder / f"{name}.log", environment, folder=given.folder)
    return {"step_s": common.last_json(done.text)["iter_s"][1:], "peak_gib": done.peak_gib, "run_s": done.seconds}


# --- the figures


def phase_work(
    size: common.ModelSize, prompts: Sequence[int], response: float, rows: int
) -> dict[str, tuple[float, float]]:
    """Return (FLOPs, tokens) of each phase; prompts: the lengths that prompts have; response: the mean of a step.

    Tokens are those that are read; of rollout and step, those that are drawn.
    """
    share = rows / len(prompts)
    forward = share * size.forward([prompt + response for prompt in prompts])
    logits = size.logits(rows * response)
    read, drawn = share * sum(prompts) + rows * response, rows * response
    work = {
        "rollout": (forward + logits, drawn),
        "score": (4 * forward + 2 * logits, read),
        "update": (3 * (2 * forward + logits), read),
    }
    return {**work, "step": (sum(flops for flops, _ in work.values()), drawn)}


def our_figures(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the records of all runs: seconds of each phase, speed, response lengths, and what else is timed."""
    records = [record for run in runs for record in run["records"]]
    perf: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith("perf/") and isinstance(value, int | float):
                perf.setdefault(name, []).append(value)
    return {
        "phases_s": {phase: [record[f"time/{phase}"] for record in records] for phase in PHASES},
        "step_s": [record["time/step"] for record in records],
        "tokens_per_s": [record["tokens_per_s"] for record in records],
        "response_tokens": [record["response_length"] for record in records if "response_length" in record],
        "perf": {name: statistics.median(values) for name, values in sorted(perf.items())},
        "peak_gib": [run["peak_gib"] for run in runs],
        "run_s": [run["run_s"] for run in runs],
    }


def their_figures(runs: Sequence[dict[str, Any]], shape: Shape) -> dict[str, Any]:
    """Join all runs of the peer; its tokens are response slots, for it decodes all of them."""
    steps = [seconds for run in runs for seconds in run["step_s"]]
    return {
        "step_s": steps,
        "tokens_per_s": [shape.rows * shape.tokens / seconds for seconds in steps],
        "peak_gib": [run["peak_gib"] for run in runs],
        "run_s": [run["run_s"] for run in runs],
    }


def decode_rows(options: argparse.Namespace, given: Prepared, shape: Shape) -> int:
    """Return how many prompts a rank decodes at a time."""
    share: int = shape.rows // options.ranks
    return min(int(common.settings(our_words(options, given, shape))["rollout.micro_batch_size"]), share)


def decoding(
    roofline: common.Roofline, rows: int, seconds: float, given: Prepared, shape: Shape, dtype: str
) -> dict[str, float]:
    """Compare the rollouts of all ranks, one after the other, with what memory and matrix products allow."""
    times = math.ceil(shape.rows / rows)
    size, steps = roofline.size, shape.tokens
    weights, cache = (
        times * part for part in size.decoded_bytes(common.NUM_BYTES[dtype], steps, rows, given.mean_prompt)
    )
    products = times * steps * roofline.decoding[rows]
    flops = 2 * rows * size.weights / roofline.decoding[rows]
    return {
        "rows": rows,
        "steps": times * steps,
        "bytes_weights": weights,
        "bytes_cache": cache,
        "bandwidth_share": weights / seconds / roofline.read,
        "bandwidth_share_with_cache": (weights + cache) / seconds / roofline.read,
        "products_s": products,
        "products_share": products / seconds,
        "products_flops": flops,
    }


def measured(
    options: argparse.Namespace, given: Prepared, shape: Shape, roofline: common.Roofline, peer: common.Peer | None
) -> dict[str, Any]:
    """Run both sides in turn on one shape; return all figures."""
    mine, theirs = [], []
    for turn in range(options.rounds):
        mine.append(run_ours(options, given, shape, f"{shape}-{turn}"))
        tell_run("rlhf", shape, turn, our_figures(mine[-1:])["step_s"])
        if peer is not None:
            theirs.append(run_theirs(options, given, shape, peer, f"peer-{shape}-{turn}"))
            tell_run("TRL", shape, turn, theirs[-1]["step_s"])
    ours = our_figures(mine)
    others = their_figures(theirs, shape) if theirs else None
    response = statistics.median(ours["response_tokens"]) if ours["response_tokens"] else float(shape.tokens)
    work = phase_work(roofline.size, given.prompt_tokens, response, shape.rows)
    rollout_s = statistics.median(ours["phases_s"]["rollout"])
    rows = decode_rows(options, given, shape)
    return {
        "shape": str(shape),
        "response_tokens": response,
        "full_length": all(length == shape.tokens for length in ours["response_tokens"]),
        "work": {phase: {"flops": flops, "tokens": tokens} for phase, (flops, tokens) in work.items()},
        "ours": ours,
        "peer": others,
        "ratio_step": common.ratio(others["step_s"], ours["step_s"]) if others else None,
        "ratio_peak": common.ratio(others["peak_gib"], ours["peak_gib"]) if others else None,
        "decoding": decoding(roofline, rows, rollout_s, given, shape, options.dtype),
    }


# --- the text


def tell_run(side: str, shape: Shape, turn: int, seconds: Sequence[float]) -> None:
    print(f"run {turn + 1}, {shape}, {side}: {common.shown(seconds)} s a step")


def sides(found: dict[str, Any], natural: bool) -> str:
    """Return the table of both sides; found: the figures of one shape."""
    ours, peer = found["ours"], found["peer"]
    rows = [["", "rlhf", "TRL", "TRL / rlhf"]]
    for name, key, digits in (
        ("seconds a step", "step_s", 2),
        ("response tokens/s (TRL: slots)" if natural and peer else "response tokens/s", "tokens_per_s", 1),
        ("peak memory, GiB", "peak_gib", 2),
        ("seconds a run, start included", "run_s", 1),
    ):
        others = peer[key] if peer else []
        cells = [common.shown(values, digits) for values in (ours[key], others)]
        rows.append([name, *cells, common.shown_ratio(common.ratio(others, ours[key]))])
    return common.table(rows if peer else [row[:2] for row in rows])


def phases(found: dict[str, Any], rate: float, dtype: str) -> str:
    """Return the table of this project's phases."""
    rows = [common.phase_heading(dtype)]
    for phase, work in found["work"].items():
        seconds = statistics.median(found["ours"]["phases_s"][phase])
        rows.append(common.phase_row(phase, work["flops"], work["tokens"], seconds, rate))
    return common.table(rows)


def decoding_text(found: dict[str, Any], best: float, natural: bool) -> str:
    """Return what decoding reaches of memory bandwidth and of bare matrix products; best: FLOP/s of large ones."""
    at = found["decoding"]
    most, rate = "at most " if natural else "", at["products_flops"]
    weights = at["bytes_weights"] / at["steps"] / 1e9
    return (
        f"decoding: {most}{at['steps']} steps of {at['rows']} rows, {weights:.3f} GB of weights each. "
        f"Of the rollout's time:\n"
        f"  memory: {at['bandwidth_share']:.1%} is what reading the weights takes at the full bandwidth, "
        f"{at['bandwidth_share_with_cache']:.1%} with keys and values\n"
        f"  products: {at['products_share']:.1%} is what they take alone, their weights from memory "
        f"({rate / 1e12:.3f} TFLOP/s, {rate / best:.1%} of the large ones' rate)"
    )


def tell(found: dict[str, Any], options: argparse.Namespace, given: Prepared, roofline: common.Roofline) -> None:
    """Print the figures of one shape."""
    rows, _, tokens = found["shape"].partition("x")
    steps = len(found["ours"]["step_s"])
    threads = max(1, common.cores() // options.ranks)
    print(f"\n== {rows} prompts, {tokens} new tokens, {options.dtype}, ranks: {options.ranks}, threads each: {threads}")
    prompt = f"{min(given.prompt_tokens)} to {max(given.prompt_tokens)}, {given.mean_prompt:.1f} on average"
    print(f"prompt tokens: {prompt}; response tokens: {found['response_tokens']:.1f}; steps measured: {steps}")
    if not options.natural and not found["full_length"]:
        print(f"warning: {given.end_token} was drawn: some responses are shorter than on the peer's side")
    print(sides(found, options.natural))
    print(f"\nmedians of a step; tokens are read ones, of rollout and step drawn ones\n{roofline}")
    if options.ranks > 1:
        print(f"the {options.ranks} ranks share that; their figures are sums")
    print(phases(found, roofline.flops[options.dtype], options.dtype))
    print(decoding_text(found, roofline.flops[options.dtype], options.natural))
    for name, value in found["ours"]["perf"].items():
        print(f"{name}: {value:.4g}")


def summary(shapes: Sequence[dict[str, Any]]) -> str:
    """Return the table of all shapes."""
    rows = [["shape", "rlhf s/step", "TRL s/step", "TRL / rlhf", "memory, TRL / rlhf", *(f"{p} s" for p in PHASES[:3])]]
    for found in shapes:
        ours, peer = found["ours"], found["peer"]
        steps = [f"{statistics.median(side['step_s']):.2f}" if side else "-" for side in (ours, peer)]
        ratios = [common.shown_ratio(found[key]) for key in ("ratio_step", "ratio_peak")]
        rows.append(
            [found["shape"], *steps, *ratios, *(f"{statistics.median(ours['phases_s'][p]):.2f}" for p in PHASES[:3])]
        )
    return common.table(rows)


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; end with exit code 2 for what cannot be done."""
    parser = common.new_parser(__doc__)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--prompt-tokens", type=int, nargs=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--resp", type=int, default=48)
    parser.add_argument("--shape", type=Shape.of, action="append", default=[])
    parser.add_argument("--iters", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--natural", action="store_true")
    parser.add_argument("--micro-tokens", type=int, default=2560)
    parser.add_argument("--peer-micro", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32-states", action="store_true")
    options = parser.parse_args(argv)
    options.shape = options.shape or [Shape(options.batch, options.resp)]
    common.check_options(parser, options, FIXED)
    if options.iters < 2:
        parser.error("--iters: wanted 2 or more, the first step is left out")
    for shape in options.shape:
        if shape.rows % options.ranks:
            parser.error(f"--ranks {options.ranks} do not divide the {shape.rows} prompts of a step")
    return options


def main() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("{"):  # the child process
        print(json.dumps(prepare(json.loads(sys.argv[1]))))
        return
    options = parsed()
    common.begin()
    peer = common.peer_of(options)
    found = common.heading("bench_ppo", options, peer)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        given = prepared(options, options.shape, folder)
        dropped = f"; {given.num_dropped} too long ones left out" if given.num_dropped else ""
        print(f"{len(given.prompt_tokens)} prompts{dropped}; a response ends at {given.end_token}")
        found |= {"prompt_tokens": given.prompt_tokens, "end_token": given.end_token, "shapes": []}
        for shape in options.shape:
            rows = decode_rows(options, given, shape)
            roofline = common.Roofline.measured(options.model.resolve(), options.dtype, [rows], folder / "roofline.log")
            figures = measured(options, given, shape, roofline, peer)
            tell(figures, options, given, roofline)
            found["shapes"].append({**figures, "roofline": roofline.as_json()})
    if len(options.shape) > 1:
        print(f"\n== all shapes: prompts x new tokens\n{summary(found['shapes'])}")
    common.finish(found, options.out)


if __name__ == "__main__":
    main()
