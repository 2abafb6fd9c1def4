"""Compare reward-model training of this project and of TRL on a CPU: accuracy, speed and peak memory.

Both sides get the same pairs of at most 256 tokens (longer ones are left out), 16 per step in complete steps, one
epoch, AdamW with learning rate 1e-5, and a cosine schedule to 0 after 5 % of warm-up. They differ in bfloat16: TRL
keeps float32 weights and computes under autocast; this project has bfloat16 weights and float32 master weights. They
also differ in the initial head: its standard deviation is 0.02 in TRL and 1 / sqrt(d + 1) here.

Speed is that of all training steps, without evaluation. FLOPs count the tokens of whole sequences, without padding: 2
per weight and token, plus attention; an update is three forward passes. The prompt of a pair counts twice, but this
project computes it once. Memory is that of the largest process. The last line of the output is a JSON object with all
figures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench_common as common

BATCH, MAX_TOKENS = 16, 256
FIELDS = ("prompt", "chosen", "rejected")
FIXED = (
    *("model.path", "model.dtype", "data.train", "data.eval", "data.max_tokens", "run.name", "run.output_dir"),
    *("run.seed", "launch.num_gpus", "train.batch_size", "train.num_epochs", "train.num_steps"),
)


# --- in a child process: the pairs that fit


def fitting(
    rows: Sequence[dict[str, str]], lengths: Callable[[str, str], tuple[int, int]], wanted: int | None
) -> tuple[list[dict[str, str]], list[int]]:
    """Return the first pairs of different responses that fit on both sides, and our tokens of each response.

    lengths: tokens of a prompt with a response on our side and on the peer's; wanted: number of pairs, None: all.
    """
    kept: list[dict[str, str]] = []
    tokens: list[int] = []
    for row in rows:
        if wanted is not None and len(kept) == wanted:
            break
        texts = [row[field] for field in FIELDS]
        if not all(text.strip() for text in texts) or texts[1] == texts[2]:
            continue
        both = [lengths(row["prompt"], answer) for answer in texts[1:]]
        if max(map(max, both)) <= MAX_TOKENS:
            kept.append(dict(zip(FIELDS, texts, strict=True)))
            tokens += [ours for ours, _ in both]
    return kept, tokens


def prepare(work: dict[str, Any]) -> dict[str, Any]:
    """Write the pairs that both sides read; work: the fields from `measured`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    if tokenizer.chat_template is None:
        raise SystemExit("--model needs a chat template, because TRL formats pairs with it")

    def lengths(prompt: str, answer: str) -> tuple[int, int]:
        asked = [{"role": "user", "content": prompt}]
        whole = [*asked, {"role": "assistant", "content": answer}]
        ours = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False) + answer
        theirs = tokenizer.apply_chat_template(whole, tokenize=False)
        first, second = (len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (ours, theirs))
        return first + 1, second  # EOS

    found: dict[str, Any] = {}
    for side, least in (("train", BATCH), ("test", 1)):
        lines = Path(work[side]).read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        kept, tokens = fitting(rows, lengths, work[f"num_{side}"])
        size = len(kept) - len(kept) % BATCH if side == "train" else len(kept)  # complete steps
        if size < least:
            raise SystemExit(f"--{side}: {len(kept)} pairs have at most {MAX_TOKENS} tokens, but {least} are needed")
        file = Path(work["folder"], f"{side}.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in kept[:size]), "utf-8")
        found[side] = {"pairs": size, "of": len(rows), "tokens": tokens[: 2 * size]}
    return found


# --- the runs


def our_words(options: argparse.Namespace, folder: Path, turn: int) -> list[str]:
    """Return the options of `rlhf train-rm` for one run."""
    words = [
        f"model.path={options.model.resolve()}",
        f"model.dtype={options.dtype}",
        f"data.train={folder / 'train.jsonl'}",
        f"data.eval={folder / 'test.jsonl'}",
        f"data.max_tokens={MAX_TOKENS}",
        "deepspeed=zero3",
        f"launch.num_gpus={options.ranks}",
        f"run.output_dir={folder / 'outputs'}",
        f"run.name=rm-{turn}",
        f"run.seed={turn}",
        f"train.batch_size={BATCH}",
        f"train.micro_batch_tokens={options.micro_tokens}",
        *("train.num_epochs=1", "train.eval_every_steps=0", "train.num_calibration_pairs=2"),
        *("optim.learning_rate=1e-5", "optim.schedule=cosine", "optim.warmup_ratio=0.05", "optim.min_lr_ratio=0"),
        *("optim.beta2=0.999", "optim.weight_decay=0", "optim.max_grad_norm=1"),  # as transformers has them
        *("check.num_prompts=0", "checkpoint.every_steps=0", "guard.action=warn"),
    ]
    return common.overridden(words, options.overrides)


def run_ours(options: argparse.Namespace, folder: Path, turn: int) -> dict[str, float]:
    """Run this project once; return seconds of training, accuracy and peak memory."""
    words = [sys.executable, "-m", "rlhf_cli", "train-rm", *our_words(options, folder, turn)]
    environment = common.environment(sys.executable, options.ranks)
    done = common.run_child(words, folder / f"rlhf-{turn}.log", environment)
    run = folder / "outputs" / f"rm-{turn}"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    after = json.loads((run / "summary.json").read_text("utf-8"))["after"]
    shutil.rmtree(run)  # it contains the trained weights
    seconds = sum(record["time/update"] for record in records if "time/update" in record)
    return {"train_s": seconds, "accuracy": after["eval/accuracy"], "peak_gib": done.peak_gib, "run_s": done.seconds}


def peer_words(options: argparse.Namespace, folder: Path, peer: common.Peer, turn: int) -> list[str]:
    """Return the peer's command line for one run; its --batch is per rank."""
    share, bf16 = BATCH // options.ranks, options.dtype == "bfloat16"
    micro = common.micro_batch(share, options.peer_micro)
    return [
        *peer.words(peer.scripts / "trl_rm.py", options.ranks, share // micro, bf16, folder),
        *("--model", str(options.model.resolve()), "--epochs", "1", "--lr", "1e-5", "--seed", str(turn)),
        *("--train", str(folder / "train.jsonl"), "--test", str(folder / "test.jsonl")),
        *("--batch", str(share), "--micro", str(micro), "--maxlen", str(MAX_TOKENS)),
        *([] if bf16 else ["--fp32"]),
    ]


def run_theirs(
    options: argparse.Namespace, folder: Path, peer: common.Peer, turn: int, num_pairs: int
) -> dict[str, float]:
    """Run the peer once; return seconds of training, accuracy and peak memory."""
    environment = common.environment(str(peer.python), options.ranks)
    words = peer_words(options, folder, peer, turn)
    done = common.run_child(words, folder / f"peer-{turn}.log", environment, folder=folder)
    last = common.last_json(done.text)
    seconds = num_pairs / last["pairs_per_s"]
    return {"train_s": seconds, "accuracy": last["acc_after"], "peak_gib": done.peak_gib, "run_s": done.seconds}


# --- figures and output


def joined(runs: Sequence[dict[str, float]], num_pairs: int) -> dict[str, list[float]]:
    """Return each figure of all runs, and the pairs per second."""
    columns = {name: [run[name] for run in runs] for name in (runs[0] if runs else {})}
    return {**columns, "pairs_per_s": [num_pairs / seconds for seconds in columns.get("train_s", [])]}


def figures(
    mine: Sequence[dict[str, float]],
    theirs: Sequence[dict[str, float]],
    roofline: common.Roofline,
    lengths: Sequence[int],
) -> dict[str, Any]:
    """Return the figures of both sides; lengths: tokens of each training response with its prompt."""
    ours, peer = joined(mine, len(lengths) // 2), joined(theirs, len(lengths) // 2) if theirs else None
    return {
        "ours": ours,
        "peer": peer,
        "ratio_train": common.ratio(peer["train_s"], ours["train_s"]) if peer else None,
        "ratio_peak": common.ratio(peer["peak_gib"], ours["peak_gib"]) if peer else None,
        "accuracy_difference": statistics.mean(ours["accuracy"]) - statistics.mean(peer["accuracy"]) if peer else None,
        "work": {"flops": 3 * roofline.size.forward(lengths), "tokens": sum(lengths)},
        "roofline": asdict(roofline),
    }


def sides(found: dict[str, Any]) -> str:
    """Return the table of both sides."""
    columns = [
        ("held-out accuracy", "accuracy", 4),
        ("seconds of training", "train_s", 1),
        ("pairs/s", "pairs_per_s", 2),
        ("peak memory, GiB", "peak_gib", 2),
        ("seconds per run, including start", "run_s", 1),
    ]
    return common.compared(found["ours"], found["peer"], columns)


def print_figures(found: dict[str, Any], options: argparse.Namespace, roofline: common.Roofline) -> None:
    """Print all figures."""
    print(f"\n{options.dtype}, {options.ranks} ranks of {max(1, common.cores() // options.ranks)} threads")
    if options.dtype == "bfloat16":
        print("TRL: float32 weights, bfloat16 autocast; rlhf: bfloat16 weights, float32 master weights")
    print(sides(found))
    if found["accuracy_difference"] is not None:
        print(f"difference of mean accuracy, rlhf - TRL: {found['accuracy_difference']:+.4f}")
    print(f"\nall updates of a run\n{roofline}")
    if options.ranks > 1:
        print(f"the {options.ranks} ranks share these threads; their figures are sums")
    seconds, work = statistics.median(found["ours"]["train_s"]), found["work"]
    row = common.phase_row("update", work["flops"], work["tokens"], seconds, roofline.flops[options.dtype])
    print(common.table([common.phase_heading(options.dtype), row]))


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exit with code 2 if it is invalid."""
    parser = common.new_parser(__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=1, help="runs of each side, with seeds 0, 1, ... (default: 1)")
    add("--num-train", type=int, help="training pairs (default: all embedded pairs that fit)")
    add("--num-test", type=int, help="held-out pairs (default: all embedded pairs that fit)")
    add("--micro-tokens", type=int, default=2048, help="train.micro_batch_tokens (default: 2048)")
    add("--peer-micro", type=int, default=8, help="pairs of the peer's micro-batches (default: 8)")
    options = parser.parse_args(argv)
    common.check_options(parser, options, FIXED)
    if BATCH % options.ranks:
        parser.error(f"--ranks {options.ranks} does not divide the {BATCH} pairs of a step")
    return options


def files() -> dict[str, str]:
    """Return the files of the embedded training and held-out pairs."""
    from rlhf_cli.config.paths import resolve_path

    names = {"train": "preferences_train", "test": "preferences_eval"}
    return {side: resolve_path(f"pkg://rlhf_cli.demo/{name}.jsonl", "data") for side, name in names.items()}


def measured(options: argparse.Namespace, peer: common.Peer | None, folder: Path) -> dict[str, Any]:
    """Prepare the pairs and run both sides in turn; print and return all figures."""
    model = options.model.resolve()
    sizes = {"num_train": options.num_train, "num_test": options.num_test}
    work = {"model": str(model), "folder": str(folder), **files(), **sizes}
    data = common.task(__file__, work, folder / "prepare.log")
    print(", ".join(f"{side}: {data[side]['pairs']} of {data[side]['of']} pairs" for side in ("train", "test")))
    roofline = common.Roofline.measured(model, options.dtype, [], folder / "roofline.log")
    mine, theirs = [], []
    for turn in range(options.rounds):
        mine.append(run_ours(options, folder, turn))
        print_run("rlhf", turn, mine[-1])
        if peer is not None:
            theirs.append(run_theirs(options, folder, peer, turn, data["train"]["pairs"]))
            print_run("TRL", turn, theirs[-1])
    found = figures(mine, theirs, roofline, data["train"]["tokens"])
    print_figures(found, options, roofline)
    return {**found, "pairs": {side: data[side]["pairs"] for side in data}}


def print_run(side: str, turn: int, run: dict[str, float]) -> None:
    print(f"run {turn + 1}, {side}: {run['train_s']:.1f} s of training, accuracy {run['accuracy']:.4f}")


def main() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("{"):  # the child process
        print(json.dumps(prepare(json.loads(sys.argv[1]))))
        return
    options = parsed()
    peer = common.peer_of(options)
    found = common.begin("bench_rm", options, peer)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        found |= measured(options, peer, Path(name))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
