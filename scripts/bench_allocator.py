"""Measure what keeping freed memory saves on a CPU: a training step with glibc's defaults and with a run's settings.

Child processes alternate between both sides. Each runs --steps steps (forward, backward, AdamW) of a random bfloat16
Llama model with SmolLM2-135M's width on 16 x 96 tokens; the first step is left out. The median seconds and minor page
faults per step of each side are printed, and the ratio of the seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

SIDES = {"glibc defaults": False, "freed memory kept": True}


def child(keep: bool, layers: int, steps: int) -> None:
    """Print [seconds, page faults] of each step as a JSON list."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from rlhf_cli.run.launch import keep_freed_memory

    if keep:
        keep_freed_memory()
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(49152, (16, 96))
    rows = []
    for _ in range(steps):
        start, faults = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        model(ids, labels=ids, logits_to_keep=0).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        spent = time.perf_counter() - start
        rows.append([spent, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults])
    print(json.dumps(rows[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="default: 12")
    parser.add_argument("--rounds", type=int, default=3, help="processes per side (default: 3)")
    parser.add_argument("--steps", type=int, default=4, help="steps per process (default: 4)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        child(SIDES[options.side], options.layers, options.steps)
        return
    rows: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    words = [sys.executable, __file__, "--layers", str(options.layers), "--steps", str(options.steps)]
    for _ in range(options.rounds):
        for side in SIDES:
            done = subprocess.run([*words, "--side", side], capture_output=True, text=True, check=True)
            rows[side] += json.loads(done.stdout.splitlines()[-1])
    medians = {side: statistics.median(seconds for seconds, _ in found) for side, found in rows.items()}
    for side, found in rows.items():
        faults = statistics.median(count for _, count in found)
        print(f"{side:18} {medians[side]:6.2f} s per step   {faults:9.0f} page faults per step   ({len(found)} steps)")
    first, second = medians.values()
    print(f"ratio {first / second:.2f}")


if __name__ == "__main__":
    main()
