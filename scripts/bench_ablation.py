"""Measure what each fast path of a PPO step saves: a phase with and without it, in turn, in one process.

All four models start from the same causal language model, which needs a chat template; the two that score get a new
head. The prompts are those of the embedded demo. For each fast path the median seconds of its phase with and without
it are printed, and their ratio. Differences of a few per cent are noise.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DynamicCache, PreTrainedModel

from rlhf_cli.algo.packing import Packing
from rlhf_cli.config.compose import load
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.engine import distributed
from rlhf_cli.engine import factory as choose
from rlhf_cli.models import kernels
from rlhf_cli.models.cpu import attention as cpu_attention
from rlhf_cli.models.cpu.attention import use_cpu_attention
from rlhf_cli.models.cpu.linear import reordered_weights
from rlhf_cli.models.heads import ResponseLM
from rlhf_cli.models.packed_forward import packed_pass, reads_packed, use_packing
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.rollout import embedded
from rlhf_cli.run.build import build_ppo
from rlhf_cli.run.launch import keep_freed_memory, quieten_libraries
from rlhf_cli.train import forward
from rlhf_cli.train.batch import Samples
from rlhf_cli.train.forward import HeldPolicy
from rlhf_cli.train.ppo import Monitors, PPOData, PPOTrainer

Without = Callable[[], AbstractContextManager[Any]]


def trainer_of(options: argparse.Namespace, reward_model: Path, shards: bool) -> PPOTrainer:
    """Build the trainer of a run on one rank, with plain engines or with DeepSpeed's."""
    words = [
        f"model.path={options.model}",
        f"reward_model.path={reward_model}",
        "data=demo_prompts",
        "run.name=ablation",
        f"ppo.batch_size={options.rows}",
        f"ppo.minibatch_size={options.rows}",
        "ppo.num_epochs=1",
        f"ppo.micro_batch_tokens={options.micro_tokens}",
        f"rollout.max_new_tokens={options.new_tokens}",
        f"rollout.micro_batch_size={options.rows}",
        "optim.learning_rate=1e-9",  # every round sees the same policy
        "value_optim.learning_rate=1e-9",
    ]
    config = load("train-ppo", words)
    assert isinstance(config, TrainPPOConfig)
    report = Reporter(speaks=False)
    with mock.patch.object(choose, "shards", return_value=shards):
        built = build_ppo(config, report)
    unused: Any = None
    data = PPOData(built.prompts.train, built.texts)
    return PPOTrainer(config, built.passes, built.sampler, data, unused, report, Monitors())


def median_pair(fast: Callable[[], object], slow: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median seconds of two actions that run in turn."""
    spent: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for seconds, action in zip(spent, (fast, slow), strict=True):
            start = time.perf_counter()
            action()
            if number:  # the first round is a warm-up
                seconds.append(time.perf_counter() - start)
    return statistics.median(spent[0]), statistics.median(spent[1])


def print_row(name: str, phase: str, fast: float, slow: float) -> None:
    print(f"{name:52} {phase:8} {fast:6.2f}s {slow:7.2f}s {slow / fast:6.2f}", flush=True)


@contextmanager
def all_logits() -> Iterator[None]:
    """Compute the logits of every token of a batch, and select those of the responses afterwards."""

    def forward(self: ResponseLM, input_ids: Tensor, rows: Tensor, columns: Tensor, packing: Packing) -> Tensor:
        if reads_packed(self.model):
            packed: Tensor = packed_pass(self.model, packing).logits
            return packed[0, packing.indices[rows, columns]]
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits[rows, columns]

    with mock.patch.object(ResponseLM, "forward", forward):
        yield


def models_of(trainer: PPOTrainer) -> list[PreTrainedModel]:
    models = trainer.models
    engines = (models.policy, models.value_model, models.reference, *models.rewards.engines.values())
    return [engine.module.model for engine in engines]  # type: ignore[misc]


@contextmanager
def torch_attention(trainer: PPOTrainer) -> Iterator[None]:
    """Let all models use torch's attention only."""
    for model in models_of(trainer):
        model.set_attn_implementation("sdpa")
        use_packing(model)
    try:
        yield
    finally:
        for model in models_of(trainer):
            model.set_attn_implementation("sdpa")
            use_cpu_attention(model)
            use_packing(model)


@contextmanager
def unpacked(trainer: PPOTrainer) -> Iterator[None]:
    """Let all models process every sequence by itself, with padding."""
    trainer.passes.packed = False
    for model in models_of(trainer):
        model.set_attn_implementation("sdpa")
        use_cpu_attention(model)
    try:
        yield
    finally:
        trainer.passes.packed = True
        for model in models_of(trainer):
            use_packing(model)


def early_ends(trainer: PPOTrainer, options: argparse.Namespace) -> AbstractContextManager[Any]:
    """Let many tokens end a response, so that rows end early and at different steps."""
    size = trainer.models.policy.module.model.config.vocab_size  # type: ignore[union-attr]
    common = range(0, size, max(2, options.new_tokens // 4))
    return mock.patch.object(trainer.sampler, "ends", replace(trainer.passes.ends, ids=frozenset(common)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal LM with a chat template")
    parser.add_argument("--rows", type=int, default=16, help="prompts per step (default: 16)")
    parser.add_argument("--new-tokens", type=int, default=48, help="response tokens (default: 48)")
    parser.add_argument("--micro-tokens", type=int, default=2048, help="ppo.micro_batch_tokens (default: 2048)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default: 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quieten_libraries()
    keep_freed_memory()
    distributed.initialise(3600)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        head = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=1, dtype=torch.bfloat16)
        head.save_pretrained(folder)
        AutoTokenizer.from_pretrained(options.model).save_pretrained(folder)
        del head
        measure(options, Path(folder))
    distributed.shut_down()


def patched(owner: Any, name: str, value: Any) -> Without:
    return lambda: mock.patch.object(owner, name, value)


def measure(options: argparse.Namespace, reward_model: Path) -> None:
    """Measure and print every fast path."""
    trainer = trainer_of(options, reward_model, shards=False)
    with mock.patch.object(trainer.sampler, "ends", replace(trainer.passes.ends, ids=frozenset())):
        samples = trainer.collect()
    rollout = trainer.score(samples)
    print(f"{options.rows} prompts, {options.new_tokens} new tokens, {torch.get_num_threads()} threads, bfloat16")
    print(f"{'fast path':52} {'phase':8} {'with':>7} {'without':>8} {'ratio':>6}")

    def show(name: str, phase: str, action: Callable[[], object], without: Without) -> None:
        def slow() -> None:
            with without():
                action()

        print_row(name, phase, *median_pair(action, slow, options.rounds))

    def collect_all() -> Samples:
        with mock.patch.object(trainer.sampler, "ends", replace(trainer.passes.ends, ids=frozenset())):
            return trainer.collect()

    def collect_early() -> Samples:
        with early_ends(trainer, options):
            return trainer.collect()

    plain = lambda model, room: DynamicCache(config=model.config)  # noqa: E731
    show("one key-value buffer per rollout", "rollout", collect_all, patched(embedded, "preallocated_cache", plain))
    no_tiles = patched(cpu_attention, "_has_tiles", lambda _: False)
    show("this CPU's attention and layers in decoding", "rollout", collect_all, lambda: torch_attention(trainer))
    show("torch's attention of one token on tiles (AMX)", "rollout", collect_all, no_tiles)
    show("layers in fewer operations", "rollout", collect_all, patched(kernels, "cpu_decoding", reordered_weights))
    as_they_are = patched(kernels, "cpu_decoding", lambda *_: nullcontext())
    show("the same, with weights reordered once per rollout", "rollout", collect_all, as_they_are)
    stay = patched(embedded, "_MIN_DROPPED", 2)
    show("ended rows leave the batch (they end early)", "rollout", collect_early, stay)
    for phase, action in (("score", lambda: trainer.score(samples)), ("update", lambda: trainer.train_on(rollout))):
        show("packed sequences", phase, action, lambda: unpacked(trainer))
        show("attention by blocks of queries, or tiles", phase, action, lambda: torch_attention(trainer))
        show("torch's attention on tiles (AMX), forwards", phase, action, no_tiles)
    show("logits of response tokens only", "score", lambda: trainer.score(samples), all_logits)

    def step() -> None:
        with HeldPolicy(trainer.models.policy) as held:
            trainer.train_on(trainer.score(samples, held), held)

    again = patched(trainer, "_can_reuse", lambda _: False)
    show("the update reuses scoring's pass of the policy", "both", step, again)
    map_micro_batches = patched(forward, "micro_batches", lambda sizes, *_: [[place] for place in range(len(sizes))])
    show("micro-batches of many rows instead of one", "update", lambda: trainer.train_on(rollout), map_micro_batches)
    # from here on gloo's threads are running, as under ZeRO-3; nothing stops them
    print_row(
        "no threads of gloo (one rank exchanges nothing)", "rollout", *with_gloo_threads(collect_all, options.rounds)
    )
    measure_zero3(trainer, trainer_of(options, reward_model, shards=True), samples, options.rounds)


def with_gloo_threads(action: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median seconds of an action before and after a large exchange, which starts gloo's threads."""

    def seconds() -> float:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    before = statistics.median(seconds() for _ in range(rounds))
    many = torch.zeros(10_000_000)
    torch.distributed.all_gather([torch.zeros_like(many)], many)
    return before, statistics.median(seconds() for _ in range(rounds))


def measure_zero3(trainer: PPOTrainer, sharded: PPOTrainer, samples: Samples, rounds: int) -> None:
    """Measure one gather per update, and compare the plain engines with DeepSpeed's on this one rank."""
    rollout = trainer.score(samples)
    by_layers = replace(sharded.config, ppo=replace(sharded.config.ppo, gather=False))

    def ungathered() -> None:
        with mock.patch.object(sharded, "config", by_layers):
            sharded.train_on(rollout)

    pair = median_pair(lambda: sharded.train_on(rollout), ungathered, rounds)
    print_row("ZeRO-3: one gather per update", "update", *pair)
    pair = median_pair(lambda: trainer.score(samples), lambda: sharded.score(samples), rounds)
    print_row("plain PyTorch instead of ZeRO-3 on one rank", "score", *pair)
    pair = median_pair(lambda: trainer.train_on(rollout), lambda: sharded.train_on(rollout), rounds)
    print_row("plain PyTorch instead of ZeRO-3 on one rank", "update", *pair)


if __name__ == "__main__":
    main()
