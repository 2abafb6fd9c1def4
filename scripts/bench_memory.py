"""Compare the memory plan with real runs, phase by phase.

Every case runs `rlhf train-ppo` or `rlhf train-rm` on random models, with one process per rank. The live tensors of
rank 0 are counted by their storages (rlhf_cli/plan/live_tensors.py). Resident memory would include freed memory and
libraries. The plan is computed for the same run. All prompts have the longest length that the options allow. Without a
GPU, host memory and device memory are the same, both in the plan and in the count. The exit code is 1 if the plan of a
peak is off by more than 10 %.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import string
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from bench_common import cores, cpu_name, environment, table

from rlhf_cli.plan.live_tensors import LiveTensors
from rlhf_cli.plan.memory_map import PHASES
from rlhf_cli.system.processes import free_port

_PHASE_OF = {"evaluation before training": "rollout", "evaluation after training": "rollout", "rollout": "rollout"}
_PHASE_OF |= {"score": "score", "update": "update", "checkpoint": "save", "export": "save"}
_DEADLINE_S = 1800
_TOLERANCE = 0.1


@dataclass(frozen=True)
class Case:
    """A run; words: its options that differ from PPO or from the defaults of train-rm."""

    name: str
    command: str
    ranks: int = 1
    words: tuple[str, ...] = ()
    width: int = 256
    layers: int = 8
    vocabulary: int = 2048
    dtype: str = "bfloat16"
    prompt: int = 48  # tokens
    response: int = 32  # tokens


SMOL: dict[str, Any] = {"width": 576, "layers": 30, "vocabulary": 49152}
LONG: dict[str, Any] = {"prompt": 96, "response": 64}
PPO = ("ppo.num_steps=2", "ppo.batch_size=8", "ppo.minibatch_size=4", "ppo.micro_batch_size=2", "eval.num_prompts=0")
WIDE = ("ppo.batch_size=16", "ppo.minibatch_size=16", "ppo.micro_batch_size=16")
CHECKPOINTING = "model.gradient_checkpointing=true"
UNPACKED = ("model.packing=false", "reward_model.packing=false")
NO_GATHER = ("ppo.gather=false", "rollout.gather=false")
BFLOAT16_STATES = ("optim.state_dtype=bfloat16", "value_optim.state_dtype=bfloat16")
OFFLOAD = ("deepspeed=zero3_offload",)
CASES = (
    Case("ppo, width 64", "train-ppo", width=64, layers=4),
    Case("ppo, width 256", "train-ppo"),
    Case("ppo, width 256, float32", "train-ppo", dtype="float32"),
    Case("ppo, width 256, 16 x (96 + 64)", "train-ppo", 1, WIDE, **LONG),
    Case("ppo, width 256, the same, checkpointing", "train-ppo", 1, (*WIDE, CHECKPOINTING), **LONG),
    Case("ppo, width 256, the same, no packing", "train-ppo", 1, (*WIDE, *UNPACKED), **LONG),
    Case("ppo, width 256, budget of 640 tokens", "train-ppo", 1, (*WIDE[:2], "ppo.micro_batch_tokens=640"), **LONG),
    Case("ppo, width 256, bfloat16 states, average", "train-ppo", 1, (*BFLOAT16_STATES, "ppo.ema_decay=0.9")),
    Case("ppo, SmolLM2-135M", "train-ppo", 1, ("ppo.micro_batch_size=4",), **SMOL),
    Case(
        *("ppo, SmolLM2-135M, checkpointing, 8 x (96 + 64)", "train-ppo", 1),
        ("ppo.minibatch_size=8", "ppo.micro_batch_size=8", CHECKPOINTING),
        **SMOL,
        **LONG,
    ),
    Case("ppo, width 256, 2 ranks", "train-ppo", 2),
    Case("ppo, width 256, 2 ranks, float32", "train-ppo", 2, dtype="float32"),
    Case("ppo, width 256, 2 ranks, no gather", "train-ppo", 2, NO_GATHER),
    Case("ppo, SmolLM2-135M, 2 ranks", "train-ppo", 2, **SMOL),
    Case(
        *("ppo, SmolLM2-135M, 2 ranks, reused pass", "train-ppo", 2),
        ("ppo.minibatch_size=8", "ppo.micro_batch_size=4"),
        **SMOL,
    ),
    Case("ppo, SmolLM2-135M, 2 ranks, frozen models offloaded", "train-ppo", 2, ("ppo.offload_frozen=true",), **SMOL),
    Case("ppo, SmolLM2-135M, 2 ranks, offload", "train-ppo", 2, OFFLOAD, **SMOL),
    Case("ppo, width 256, 1 rank, offload of the optimizer", "train-ppo", 1, ("deepspeed=zero3_offload_optimizer",)),
    Case("reward model, width 256", "train-rm"),
    Case("reward model, SmolLM2-135M", "train-rm", **SMOL),
    Case("reward model, SmolLM2-135M, checkpointing", "train-rm", 1, (CHECKPOINTING,), **SMOL),
    Case("reward model, SmolLM2-135M, 2 ranks", "train-rm", 2, **SMOL),
    Case("reward model, SmolLM2-135M, 2 ranks, offload", "train-rm", 2, OFFLOAD, **SMOL),
)


def words_of(case: Case, folder: Path) -> list[str]:
    """Return the options of a case and write its data into a folder."""
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
    draw = random.Random(0)

    def text(size: int) -> str:
        return "".join(draw.choices(string.ascii_letters + string.digits, k=size))

    models = ["model", "reward_model"] if case.command == "train-ppo" else ["model"]
    options = {one: {"from_config": shape, "tokenizer": "bytes", "dtype": case.dtype} for one in models}
    (folder / "case.yaml").write_text(json.dumps(options))  # JSON is YAML
    words = [
        *(f"conf={folder / 'case.yaml'}", "run.name=run", f"run.output_dir={folder}", "checkpoint.every_steps=1"),
        *("check.num_prompts=0", "data.apply_chat_template=false", "data.eval_fraction=0", "data.cache=false"),
    ]
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
    """Run a case with one process per rank; return the largest number of bytes that rank 0 held in each phase."""
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
    return dict(json.loads(out.read_text()))


class Phases:
    """The largest number of live bytes in each phase of a run in this process."""

    def __init__(self, live: LiveTensors) -> None:
        self.live = live
        self.phase = "load"
        self.peaks = dict.fromkeys(PHASES, 0)

    def enter(self, phase: str) -> None:
        """End the current phase and begin another one."""
        self.peaks[self.phase] = max(self.peaks[self.phase], self.live.peak)
        if self.phase == "load":  # weights that no torch operation made
            for one in gc.get_objects():
                if isinstance(one, torch.nn.Parameter) and one.numel():
                    self.live.add(one)
        self.live.reset_peak()
        self.phase = phase


def child(work: dict[str, Any]) -> int:
    """Run the command and count its live tensors; write the peak of each phase to a file."""
    from rlhf_cli.cli import main
    from rlhf_cli.system.watchdog import PROGRESS

    phases = Phases(LiveTensors(lambda tensor: None if tensor.is_meta else ""))  # meta tensors belong to the plan
    enter = type(PROGRESS).enter

    def see(progress: Any, name: str, step: int | None = None) -> None:
        if name in _PHASE_OF:
            phases.enter(_PHASE_OF[name])
        enter(progress, name, step)

    type(PROGRESS).enter = see  # type: ignore[method-assign]
    with phases.live:
        code = main(work["words"])
    phases.enter("save")
    if work["out"] and code == 0:
        Path(work["out"]).write_text(json.dumps(phases.peaks))
    return code


def planned(case: Case, folder: Path) -> dict[str, int]:
    """Return the planned bytes of tensors of rank 0 in each phase, in host memory and on the device."""
    from rlhf_cli.config.compose import load
    from rlhf_cli.plan.fit import memory_map
    from rlhf_cli.plan.memory_map import Topology, total
    from rlhf_cli.plan.phases import Lengths

    config = load(case.command, words_of(case, folder))
    longest = case.prompt + case.response
    lengths = Lengths(case.prompt, case.prompt, longest if case.command == "train-rm" else 0)
    found = memory_map(config, Topology(case.ranks, case.ranks, on_gpu=False), lengths)
    peaks: dict[str, int] = {}
    for moment in found.moments:
        host = [item for item in (*moment.host, *moment.host_of_rank_0) if item.what != "a checkpoint file"]
        # the last evaluation of train-rm is part of the save phase
        phase = "save" if case.command == "train-rm" and moment.phase == "score" else moment.phase
        peaks[phase] = max(peaks.get(phase, 0), moment.device_bytes + total(host))
    return peaks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases whose name contains one of these")
    parser.add_argument("--quick", action="store_true", help="the first case only")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(json.loads(options.child))
    cases = [case for case in CASES if not options.only or any(word in case.name for word in options.only)]
    cases = cases[:1] if options.quick else cases
    print(f"bench_memory: {cpu_name()}, {cores()} cores; MiB of rank 0: planned / measured (difference)")
    rows, found = [["run", *PHASES, "peak"]], []
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="bench-memory-") as name:
            plan, real = planned(case, Path(name)), measured(case, Path(name))
        peak = max(plan.values()), max(real.values())
        rows.append([case.name, *(_cell(plan.get(phase, 0), real[phase]) for phase in PHASES), _cell(*peak)])
        found.append({"case": asdict(case), "planned": plan, "measured": real, "off": peak[0] / peak[1] - 1})
        print("  ".join(rows[-1]), flush=True)
    print("\n" + table(rows))
    off = [abs(one["off"]) for one in found]
    near = sum(one <= _TOLERANCE for one in off)
    print(f"\nlargest difference of a peak: {max(off):.1%}; within {_TOLERANCE:.0%}: {near} of {len(off)}")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if max(off) <= _TOLERANCE else 1


def _cell(plan: int, real: int) -> str:
    off = f"{plan / real - 1:+.1%}" if real else "-"
    return f"{plan / 2**20:.1f} / {real / 2**20:.1f} ({off})"


if __name__ == "__main__":
    sys.exit(main())
