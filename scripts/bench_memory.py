"""The memory plan beside reality: real runs whose live tensors are counted, phase by phase.

usage: python scripts/bench_memory.py [--only WORD ...] [--quick] [--out FILE.json]

  --only WORD ...   cases whose name has one of these words
  --quick           the first case alone
  --out FILE        write everything as JSON

Every case is a run of `rlhf train-ppo` or `rlhf train-rm` on models with random weights, in processes of its own, one a
rank, with the command's own code; what it holds is counted by storages that are alive
(rlhf_cli/plan/live_tensors.py), not by resident memory, which has
freed memory and libraries in it. Beside it stands what the plan says of that run. All
prompts have the length that the options allow. Without a GPU, a model's copy in host memory and its place on the device
are one: so are both sides here. On a GPU the count is the allocator's.

In each phase: planned and measured bytes of rank 0, and how far the plan is off. The last column is the run's peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from bench_common import begin, cores, cpu_name, environment, table

from rlhf_cli.plan.live_tensors import LiveTensors
from rlhf_cli.plan.memory_map import PHASES
from rlhf_cli.system.processes import free_port

_OF = {"evaluation before training": "rollout", "evaluation after training": "rollout", "rollout": "rollout"}
_OF |= {"score": "score", "update": "update", "checkpoint": "save", "export": "save"}
_DEADLINE_S = 1800
_WANTED = 0.1


@dataclass(frozen=True)
class Case:
    """One run: what differs from the smallest one."""

    name: str
    command: str
    ranks: int
    width: int
    layers: int
    words: tuple[str, ...] = ()
    vocabulary: int = 2048
    dtype: str = "bfloat16"
    prompt: int = 48  # tokens
    response: int = 32


SMOL = {"width": 576, "layers": 30, "vocabulary": 49152}
PPO = ("ppo.num_steps=2", "ppo.batch_size=8", "ppo.minibatch_size=4", "ppo.micro_batch_size=2", "eval.num_prompts=0")
CASES = (
    Case("ppo, width 64", "train-ppo", 1, 64, 4),
    Case("ppo, width 256", "train-ppo", 1, 256, 8),
    Case("ppo, width 256, float32", "train-ppo", 1, 256, 8, dtype="float32"),
    Case(
        "ppo, width 256, 16 x (96 + 64)",
        "train-ppo",
        1,
        256,
        8,
        ("ppo.batch_size=16", "ppo.minibatch_size=16", "ppo.micro_batch_size=16"),
        prompt=96,
        response=64,
    ),
    Case(
        "ppo, width 256, the same, checkpointing",
        "train-ppo",
        1,
        256,
        8,
        ("ppo.batch_size=16", "ppo.minibatch_size=16", "ppo.micro_batch_size=16", "model.gradient_checkpointing=true"),
        prompt=96,
        response=64,
    ),
    Case(
        "ppo, width 256, the same, no packing",
        "train-ppo",
        1,
        256,
        8,
        (
            "ppo.batch_size=16",
            "ppo.minibatch_size=16",
            "ppo.micro_batch_size=16",
            "model.packing=false",
            "reward_model.packing=false",
        ),
        prompt=96,
        response=64,
    ),
    Case(
        "ppo, width 256, budget of 640 tokens",
        "train-ppo",
        1,
        256,
        8,
        ("ppo.batch_size=16", "ppo.minibatch_size=16", "ppo.micro_batch_tokens=640"),
        prompt=96,
        response=64,
    ),
    Case(
        "ppo, width 256, bfloat16 states, average",
        "train-ppo",
        1,
        256,
        8,
        ("optim.state_dtype=bfloat16", "value_optim.state_dtype=bfloat16", "ppo.ema_decay=0.9"),
    ),
    Case("ppo, SmolLM2-135M", "train-ppo", 1, words=("ppo.micro_batch_size=4",), **SMOL),
    Case(
        "ppo, SmolLM2-135M, checkpointing, 8 x (96 + 64)",
        "train-ppo",
        1,
        words=("ppo.minibatch_size=8", "ppo.micro_batch_size=8", "model.gradient_checkpointing=true"),
        prompt=96,
        response=64,
        **SMOL,
    ),
    Case("ppo, width 256, 2 ranks", "train-ppo", 2, 256, 8),
    Case("ppo, width 256, 2 ranks, float32", "train-ppo", 2, 256, 8, dtype="float32"),
    Case("ppo, width 256, 2 ranks, no gather", "train-ppo", 2, 256, 8, ("ppo.gather=false", "rollout.gather=false")),
    Case("ppo, SmolLM2-135M, 2 ranks", "train-ppo", 2, **SMOL),
    Case(
        "ppo, SmolLM2-135M, 2 ranks, reused pass",
        "train-ppo",
        2,
        words=("ppo.minibatch_size=8", "ppo.micro_batch_size=4"),
        **SMOL,
    ),
    Case(
        "ppo, SmolLM2-135M, 2 ranks, frozen models offloaded",
        "train-ppo",
        2,
        words=("ppo.offload_frozen=true",),
        **SMOL,
    ),
    Case("ppo, SmolLM2-135M, 2 ranks, offload", "train-ppo", 2, words=("deepspeed=zero3_offload",), **SMOL),
    Case(
        "ppo, width 256, 1 rank, offload of the optimizer",
        "train-ppo",
        1,
        256,
        8,
        ("deepspeed=zero3_offload_optimizer",),
    ),
    Case("reward model, width 256", "train-rm", 1, 256, 8),
    Case("reward model, SmolLM2-135M", "train-rm", 1, **SMOL),
    Case(
        "reward model, SmolLM2-135M, checkpointing", "train-rm", 1, words=("model.gradient_checkpointing=true",), **SMOL
    ),
    Case("reward model, SmolLM2-135M, 2 ranks", "train-rm", 2, **SMOL),
    Case("reward model, SmolLM2-135M, 2 ranks, offload", "train-rm", 2, words=("deepspeed=zero3_offload",), **SMOL),
)


def words_of(case: Case, folder: Path) -> list[str]:
    """Return the command line of a case; its data are written into a folder."""
    heads = max(1, case.width // 64)
    shape = {
        "model_type": "llama",
        "hidden_size": case.width,
        "intermediate_size": case.width * 8 // 3,
        "num_hidden_layers": case.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 3 if heads % 3 == 0 else heads,
        "vocab_size": case.vocabulary,
        "tie_word_embeddings": case.vocabulary > 10_000,
        "max_position_embeddings": 2048,
    }
    chosen = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

    def text(size: int) -> str:
        return "".join(chosen.choice(letters) for _ in range(size))

    models = ["model", "reward_model"] if case.command == "train-ppo" else ["model"]
    options = {one: {"from_config": shape, "tokenizer": "bytes", "dtype": case.dtype} for one in models}
    (folder / "case.yaml").write_text(json.dumps(options))  # JSON is YAML
    words = [
        f"conf={folder / 'case.yaml'}",
        "run.name=run",
        f"run.output_dir={folder}",
        "checkpoint.every_steps=1",
        "check.num_prompts=0",
    ]
    words += ["data.apply_chat_template=false", "data.eval_fraction=0", "data.cache=false"]
    data = folder / "data.jsonl"
    if case.command == "train-ppo":
        rows = [{"prompt": text(case.prompt)} for _ in range(64)]
        words += [f"data.max_prompt_tokens={case.prompt}", f"rollout.max_new_tokens={case.response}", *PPO]
    else:
        rows = [
            {"prompt": text(case.prompt), "chosen": text(case.response - 1), "rejected": text(case.response - 1)}
            for _ in range(64)
        ]
        words += [f"data.max_tokens={case.prompt + case.response}", "train.num_steps=2", "train.batch_size=8"]
        words += ["train.micro_batch_size=2", "train.eval_every_steps=0", "train.num_calibration_pairs=8"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [*words, f"data.train={data}", *case.words]


def measured(case: Case, folder: Path) -> dict[str, int]:
    """Run a case in processes of its own; return the most bytes that rank 0 held in each phase."""
    port = free_port()
    out = folder / "measured.json"
    children = []
    for rank in range(case.ranks):
        env = environment(sys.executable, case.ranks)
        if case.ranks > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(case.ranks)}
            env |= {"LOCAL_WORLD_SIZE": str(case.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work = json.dumps({"words": [case.command, *words_of(case, folder)], "out": str(out) if rank == 0 else None})
        log = (folder / f"rank{rank}.log").open("wb")
        words = [sys.executable, __file__, "--child", work]
        children.append(subprocess.Popen(words, env=env, stdout=log, stderr=subprocess.STDOUT))
    codes = [child.wait(_DEADLINE_S) for child in children]
    if any(codes):
        raise SystemExit(f"{case.name}: exit codes {codes}\n{(folder / 'rank0.log').read_text()[-3000:]}")
    found_json: dict[str, int] = json.loads(out.read_text())
    return found_json


class Phases:
    """The most that is alive in each phase of a run in this process."""

    def __init__(self, live: LiveTensors) -> None:
        self.live = live
        self.phase = "load"
        self.peaks = dict.fromkeys(PHASES, 0)

    def enter(self, phase: str) -> None:
        """Close the phase before, and go on with another one."""
        self.peaks[self.phase] = max(self.peaks[self.phase], self.live.peak)
        if self.phase == "load":  # weights that were made by other means than torch's operations
            for one in gc.get_objects():
                if isinstance(one, torch.nn.Parameter) and one.numel():
                    self.live.add(one)
        self.live.reset_peak()
        self.phase = phase


def child(work: dict[str, Any]) -> int:
    """Run the command with its live tensors counted; write the peaks of the phases to a file."""
    from rlhf_cli.cli import main
    from rlhf_cli.system.watchdog import PROGRESS

    phases = Phases(LiveTensors(lambda tensor: None if tensor.is_meta else ""))  # meta: the plan's own
    enter = type(PROGRESS).enter

    def see(progress: Any, name: str, step: int | None = None) -> None:
        if name in _OF:
            phases.enter(_OF[name])
        enter(progress, name, step)

    type(PROGRESS).enter = see  # type: ignore[method-assign]
    with phases.live:
        code = main(work["words"])
    phases.enter("save")
    if work["out"] and code == 0:
        Path(work["out"]).write_text(json.dumps(phases.peaks))
    return code


def planned(case: Case, folder: Path) -> dict[str, int]:
    """Return the bytes of tensors that rank 0 holds in each phase by plan, in host memory and on the device."""
    from rlhf_cli.config.compose import load
    from rlhf_cli.plan.build_map import memory_map
    from rlhf_cli.plan.memory_map import Place, total
    from rlhf_cli.plan.phases import Lengths

    config = load(case.command, words_of(case, folder))
    longest = case.prompt + case.response
    lengths = Lengths(case.prompt, case.prompt, longest if case.command == "train-rm" else 0)
    found = memory_map(config, Place(case.ranks, case.ranks, on_gpu=False), lengths)
    peaks: dict[str, int] = {}
    for moment in found.moments:
        host = [item for item in (*moment.host, *moment.first) if item.what != "a file being written"]
        phase = (
            "save" if case.command == "train-rm" and moment.phase == "score" else moment.phase
        )  # the last evaluation
        peaks[phase] = max(peaks.get(phase, 0), moment.device_bytes + total(host))
    return peaks


def main() -> int:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(json.loads(options.child))
    begin()
    cases = [case for case in CASES if not options.only or any(word in case.name for word in options.only)]
    cases = cases[:1] if options.quick else cases
    print(f"bench_memory: {cpu_name()}, {cores()} cores; MiB of rank 0, planned / measured and how far off")
    rows = [["run", *PHASES, "peak"]]
    found = []
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="bench-memory-") as name:
            folder = Path(name)
            plan, real = planned(case, folder), measured(case, folder)
        cells = [_cell(plan.get(phase, 0), real[phase]) for phase in PHASES]
        peak = max(plan.values()), max(real.values())
        row = [case.name, *cells, _cell(*peak)]
        rows.append(row)
        found.append({"case": asdict(case), "planned": plan, "measured": real, "off": peak[0] / peak[1] - 1})
        print("  ".join(row))
    print()
    print(table(rows))
    off = [abs(one["off"]) for one in found]
    near = sum(one <= _WANTED for one in off)
    print(f"\nthe peak is off by at most {max(off):.1%}; within {_WANTED:.0%}: {near} of {len(off)}")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if max(off) <= _WANTED else 1


def _cell(plan: int, real: int) -> str:
    off = f"{plan / real - 1:+.1%}" if real else "-"
    return f"{plan / 2**20:.1f} / {real / 2**20:.1f} ({off})"


if __name__ == "__main__":
    sys.exit(main())
