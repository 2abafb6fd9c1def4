"""Compare PPO steps of this project and of TRL on a CPU: speed, peak memory, and distance from the roofline.

Both sides get the same model for all four roles, the same prompts (at most 96 tokens, or HIGH of --prompt-tokens), one
PPO epoch, one update per step, learning rate 1e-6, and the same dtype of weights and AdamW states (TRL keeps float32
weights and states only under ZeRO-3). They run in turn; the first step of each run is left out. A step of this project
is the sum of its phases; a step of TRL is the time from one step to the next. Memory is that of the largest process.

FLOPs count the tokens of whole sequences, without padding: 2 per weight and token, plus attention. Scoring is four
forward passes; the update is three times a forward pass of policy and value model. Shared prefixes count in every
sequence, but this project computes them once, so its share of the product rate can exceed 1. The perf/ lines count
what is really computed. The last line of the output is a JSON object with all figures.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_common as common

MAX_PROMPT = 96  # tokens to which the peer's script truncates a prompt
NEVER_DRAWN = "<jupyter_script>"  # of SmolLM2: it only ever begins a document
PHASES = ("rollout", "score", "update", "step")
FIXED = (
    *("model.path", "reward_model.path", "model.dtype", "reward_model.dtype", "data.train", "data.max_prompt_tokens"),
    *("run.name", "run.output_dir", "launch.num_gpus", "rollout.max_new_tokens"),
    *("ppo.num_steps", "ppo.batch_size", "ppo.minibatch_size", "ppo.num_epochs"),
)


@dataclass(frozen=True)
class Shape:
    """The work of one step: the number of prompts and the response tokens of each."""

    rows: int
    tokens: int

    @staticmethod
    def of(text: str) -> Shape:
        """Parse ROWSxTOKENS."""
        rows, _, tokens = text.partition("x")
        shape = Shape(int(rows), int(tokens))
        if shape.rows < 1 or shape.tokens < 1:
            raise ValueError(text)
        return shape

    def __str__(self) -> str:
        return f"{self.rows}x{self.tokens}"


@dataclass(frozen=True)
class Prepared:
    """A temporary folder with the models and prompts that both sides read."""

    folder: Path
    prompt_tokens: list[int]  # of each prompt
    end_token: str
    num_dropped: int

    @property
    def mean_prompt(self) -> float:
        return statistics.mean(self.prompt_tokens)


# --- in a child process: copies of the model, and prompts


def end_stand_in(added: Sequence[tuple[int, str, bool]], used: Iterable[int], template: str, num_tokens: int) -> int:
    """Return the id of a token that is never sampled, to be used as EOS.

    This is the last special token that the model does not use, or else the last id of the vocabulary.
    added: id, text and whether special; used: ids of EOS, BOS and pad; template: the chat template.
    """
    taken = set(used)
    free = [(token, text) for token, text, special in added if special and token not in taken and text not in template]
    known = [token for token, text in free if text == NEVER_DRAWN]
    return known[0] if known else free[-1][0] if free else max(set(range(num_tokens)) - taken)


def ended_otherwise(template: str, eos: str, end: str) -> str:
    """Return a ChatML-style chat template in which responses, but not prompts, end with another token than EOS."""
    for quote in "'\"":
        wanted, other = f"{quote}{eos}{quote}", f"{quote}{end}{quote}"
        template = template.replace(wanted, f"({other} if message['role'] == 'assistant' else {wanted})")
    return template


def made_up(words: Sequence[str], target: int, count: Callable[[str], int], draw: random.Random) -> str:
    """Return a prompt of random words that has nearly, but at most, `target` tokens; it has at least one word."""
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
    """Write policy, reward model and prompts; work: the fields from `prepared`."""
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
        if tokenizer.chat_template is not None:  # the end of a response in the template ends generation too
            tokenizer.chat_template = ended_otherwise(tokenizer.chat_template, eos, tokenizer.eos_token)
        for config in (policy.generation_config, policy.config, scorer.config):
            config.eos_token_id = end
    for model, name in ((policy, "policy"), (scorer, "reward_model")):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {"prompt_tokens": lengths, "end_token": tokenizer.eos_token, "num_dropped": num_dropped}


def write_prompts(work: dict[str, Any], tokenizer: Any, file: Path) -> tuple[list[int], int]:
    """Write the prompts that fit; return the number of tokens of each, and how many did not fit."""

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
        draw = random.Random(0)
        targets = [draw.randint(lowest, highest) for _ in range(max(128, 4 * work["rows"]))]
        prompts = [made_up(words, target, count, draw) for target in targets]
    kept = [(prompt, length) for prompt, length in ((prompt, count(prompt)) for prompt in prompts) if length <= highest]
    if len(kept) < work["rows"]:
        raise SystemExit(f"{len(kept)} prompts have at most {highest} tokens, but a step needs {work['rows']}")
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt, _ in kept), "utf-8")
    return [length for _, length in kept], len(prompts) - len(kept)


# --- runs


def prepared(options: argparse.Namespace, shapes: Sequence[Shape], folder: Path) -> Prepared:
    """Write models and prompts in a child process."""
    prompts = default_prompts(None if options.prompt_tokens else options.peer_scripts)
    work = {
        "folder": str(folder),
        "model": str(options.model.resolve()),
        "dtype": options.dtype,
        "natural": options.natural,
        "prompts": str(prompts.resolve()),
        "prompt_tokens": options.prompt_tokens,
        "rows": max(shape.rows for shape in shapes),
    }
    return Prepared(folder, **common.task(__file__, work, folder / "prepare.log"))


def default_prompts(peer_scripts: Path | None) -> Path:
    """Return the peer's prompts, or the embedded ones."""
    if peer_scripts is not None and (peer_scripts / "prompts.jsonl").is_file():
        return peer_scripts / "prompts.jsonl"
    from rlhf_cli.config.paths import resolve_path

    return Path(resolve_path("pkg://rlhf_cli.demo/prompts_train.jsonl", "data.train"))


def our_words(options: argparse.Namespace, given: Prepared, shape: Shape) -> list[str]:
    """Return the options of `rlhf train-ppo`, except the run's name."""
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


def run_ours(
    options: argparse.Namespace,
    given: Prepared,
    shape: Shape,
    name: str,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Run this project once; return the metrics of all steps but the first, peak memory and duration.

    variables: more environment variables of the run.
    """
    words = [sys.executable, "-m", "rlhf_cli", "train-ppo", *our_words(options, given, shape), f"run.name={name}"]
    log = given.folder / f"{name}.log"
    done = common.run_child(words, log, common.environment(sys.executable, options.ranks) | dict(variables))
    run = given.folder / "outputs" / name
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    shutil.rmtree(run)  # it contains the trained weights
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
    """Return the peer's script with another length to which it truncates prompts."""
    if script.count(f"[:{MAX_PROMPT}]") != 1:
        raise SystemExit(f"--prompt-tokens needs a peer script that truncates prompts with [:{MAX_PROMPT}]")
    return script.replace(f"[:{MAX_PROMPT}]", f"[:{num_tokens}]")


def run_theirs(
    options: argparse.Namespace, given: Prepared, shape: Shape, peer: common.Peer, name: str
) -> dict[str, Any]:
    """Run the peer once; return the seconds of all steps but the first, peak memory and duration."""
    environment = common.environment(str(peer.python), options.ranks)
    words = peer_words(options, given, shape, peer)
    done = common.run_child(words, given.folder / f"{name}.log", environment, folder=given.folder)
    return {"step_s": common.last_json(done.text)["iter_s"][1:], "peak_gib": done.peak_gib, "run_s": done.seconds}


# --- figures


def phase_work(
    size: common.ModelSize, prompts: Sequence[int], response: float, rows: int
) -> dict[str, tuple[float, float]]:
    """Return (FLOPs, tokens) of each phase; prompts: their lengths; response: the mean response length.

    Tokens are the sampled ones for rollout and step, and the processed ones for the other phases.
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
    """Join the records of all runs: seconds of each phase, speed, response lengths and perf/ metrics."""
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
    """Join all runs of the peer; its tokens are response slots, because it always decodes to the full length."""
    steps = [seconds for run in runs for seconds in run["step_s"]]
    return {
        "step_s": steps,
        "tokens_per_s": [shape.rows * shape.tokens / seconds for seconds in steps],
        "peak_gib": [run["peak_gib"] for run in runs],
        "run_s": [run["run_s"] for run in runs],
    }


def decode_rows(options: argparse.Namespace, given: Prepared, shape: Shape) -> int:
    """Return how many prompts a rank decodes at once."""
    share: int = shape.rows // options.ranks
    return min(int(common.settings(our_words(options, given, shape))["rollout.micro_batch_size"]), share)


def decoding(
    roofline: common.Roofline, rows: int, seconds: float, given: Prepared, shape: Shape, dtype: str
) -> dict[str, float]:
    """Compare the rollouts of all ranks, one after another, with the limits of memory and matrix products."""
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
        print_run("rlhf", shape, turn, our_figures(mine[-1:])["step_s"])
        if peer is not None:
            theirs.append(run_theirs(options, given, shape, peer, f"peer-{shape}-{turn}"))
            print_run("TRL", shape, turn, theirs[-1]["step_s"])
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


# --- output


def print_run(side: str, shape: Shape, turn: int, seconds: Sequence[float]) -> None:
    print(f"run {turn + 1}, {shape}, {side}: {common.shown(seconds)} s per step")


def sides(found: dict[str, Any], natural: bool) -> str:
    """Return the table of both sides; found: the figures of one shape."""
    speed = "response tokens/s (TRL: slots)" if natural and found["peer"] else "response tokens/s"
    columns = [
        ("seconds per step", "step_s", 2),
        (speed, "tokens_per_s", 1),
        ("peak memory, GiB", "peak_gib", 2),
        ("seconds per run, including start", "run_s", 1),
    ]
    return common.compared(found["ours"], found["peer"], columns)


def phases(found: dict[str, Any], rate: float, dtype: str) -> str:
    """Return the table of this project's phases."""
    rows = [common.phase_heading(dtype)]
    for phase, work in found["work"].items():
        seconds = statistics.median(found["ours"]["phases_s"][phase])
        rows.append(common.phase_row(phase, work["flops"], work["tokens"], seconds, rate))
    return common.table(rows)


def decoding_text(found: dict[str, Any], best: float, natural: bool) -> str:
    """Say how near decoding comes to the limits; best: FLOP/s of large products."""
    at = found["decoding"]
    most, rate = "at most " if natural else "", at["products_flops"]
    weights = at["bytes_weights"] / at["steps"] / 1e9
    return (
        f"decoding: {most}{at['steps']} steps of {at['rows']} rows, {weights:.3f} GB of weights per step\n"
        f"  reading the weights at the full memory bandwidth takes {at['bandwidth_share']:.1%} of the rollout; "
        f"with keys and values {at['bandwidth_share_with_cache']:.1%}\n"
        f"  the matrix products alone, with weights from memory, take {at['products_share']:.1%} of the rollout "
        f"({rate / 1e12:.3f} TFLOP/s, {rate / best:.1%} of the rate of large products)"
    )


def print_shape(found: dict[str, Any], options: argparse.Namespace, given: Prepared, roofline: common.Roofline) -> None:
    """Print the figures of one shape."""
    rows, _, tokens = found["shape"].partition("x")
    steps = len(found["ours"]["step_s"])
    threads = max(1, common.cores() // options.ranks)
    print(f"\n== {rows} prompts, {tokens} new tokens, {options.dtype}, {options.ranks} ranks of {threads} threads")
    prompt = f"{min(given.prompt_tokens)} to {max(given.prompt_tokens)}, {given.mean_prompt:.1f} on average"
    print(f"prompt tokens: {prompt}; response tokens: {found['response_tokens']:.1f}; steps measured: {steps}")
    if not options.natural and not found["full_length"]:
        print(f"warning: {given.end_token} was sampled, so some responses are shorter than the peer's")
    print(sides(found, options.natural))
    print(f"\nmedians per step; tokens are sampled ones for rollout and step, else processed ones\n{roofline}")
    if options.ranks > 1:
        print(f"the {options.ranks} ranks share these threads; their figures are sums")
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
    """Parse the command line; exit with code 2 if it is invalid."""
    parser = common.new_parser(__doc__)
    add = parser.add_argument
    shape = "prompts and response tokens per step (default: 16x48); may be repeated"
    add("--shape", type=Shape.of, action="append", default=[], metavar="ROWSxTOKENS", help=shape)
    prompts = "random prompts of LOW to HIGH tokens (default: the peer's prompts, or the embedded ones)"
    add("--prompt-tokens", type=int, nargs=2, metavar=("LOW", "HIGH"), help=prompts)
    add("--iters", type=int, default=3, help="steps per run; the first is left out (default: 3)")
    add("--rounds", type=int, default=2, help="runs of each side (default: 2)")
    natural = "let responses end at the model's own EOS (default: EOS is never sampled, so both sides have full length)"
    add("--natural", action="store_true", help=natural)
    add("--micro-tokens", type=int, default=2560, help="ppo.micro_batch_tokens (default: 2560)")
    add("--peer-micro", type=int, default=4, help="rows of the peer's micro-batches (default: 4)")
    states = "float32 master weights and AdamW states, this project's default, also for bfloat16 on one rank"
    add("--float32-states", action="store_true", help=states)
    options = parser.parse_args(argv)
    options.shape = options.shape or [Shape(16, 48)]
    common.check_options(parser, options, FIXED)
    if options.iters < 2:
        parser.error("--iters must be at least 2, because the first step is left out")
    for shape in options.shape:
        if shape.rows % options.ranks:
            parser.error(f"--ranks {options.ranks} does not divide the {shape.rows} prompts of a step")
    return options


def main() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("{"):  # the child process
        print(json.dumps(prepare(json.loads(sys.argv[1]))))
        return
    options = parsed()
    peer = common.peer_of(options)
    found = common.begin("bench_ppo", options, peer)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        given = prepared(options, options.shape, folder)
        dropped = f"; {given.num_dropped} were too long" if given.num_dropped else ""
        print(f"{len(given.prompt_tokens)} prompts{dropped}; a response ends at {given.end_token}")
        found |= {"prompt_tokens": given.prompt_tokens, "end_token": given.end_token, "shapes": []}
        for shape in options.shape:
            rows = decode_rows(options, given, shape)
            roofline = common.Roofline.measured(options.model.resolve(), options.dtype, [rows], folder / "roofline.log")
            figures = measured(options, given, shape, roofline, peer)
            print_shape(figures, options, given, roofline)
            found["shapes"].append({**figures, "roofline": asdict(roofline)})
    if len(options.shape) > 1:
        print(f"\n== all shapes: prompts x new tokens\n{summary(found['shapes'])}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
