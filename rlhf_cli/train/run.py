"""From a configuration to a finished run: build the models, train, export."""

from __future__ import annotations

import ctypes
import os
import random
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")  # the GGUF reader has a bar of its own

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
from omegaconf import OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import load_preferences
from rlhf_cli.engine import distributed
from rlhf_cli.engine.checkpoint import Checkpoints
from rlhf_cli.engine.supervisor import end_with_supervisor
from rlhf_cli.engine.zero import TrainEngine
from rlhf_cli.models.export import export
from rlhf_cli.models.heads import TokenScorer
from rlhf_cli.models.load import (
    check_length,
    load_sequence_classifier,
    load_tokenizer,
    torch_dtype,
)
from rlhf_cli.report.logs import quieten_libraries, write_log
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.report.run_dir import RunDir, run_folder
from rlhf_cli.train.answers import AnswerBook, compare
from rlhf_cli.train.build import build_ppo, pad_id
from rlhf_cli.train.checks import TextSide, bounds_of, check_ppo, check_rm, report_checks
from rlhf_cli.train.ppo import PPOData, PPOState, PPOTrainer
from rlhf_cli.train.reward import RewardTrainer, num_steps

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h

RM_HEADLINE = ("loss", "accuracy", "margin", "lr")
PPO_HEADLINE = ("score", "kl", "reward", "response_length", "eos_rate", "clipfrac/policy")


def run(command: str, args: list[str], config: TrainRMConfig | TrainPPOConfig, check_only: bool) -> int:
    """Run one command on this rank and return its exit code; rank 0's options count on every rank.

    check_only: build and check everything, and leave it at that.
    """
    end_with_supervisor()
    quieten_libraries()
    _share_cores()
    keep_freed_memory()
    distributed.initialise(config.launch.timeout_s)
    try:
        config = distributed.broadcast(config)
        random.seed(config.run.seed)
        np.random.seed(config.run.seed)
        torch.manual_seed(config.run.seed)
        start = Start(command, args, Reporter(speaks=distributed.rank() == 0), check_only)
        if isinstance(config, TrainRMConfig):
            train_rm(config, start)
        else:
            train_ppo(config, start)
    finally:
        with suppress(Exception):  # an error on the way out must not hide the one that led here
            distributed.shut_down()
    return 0


def _share_cores() -> None:
    """Where no launcher has done it, divide the cores among the ranks: with more threads than cores, all crawl."""
    if "OMP_NUM_THREADS" not in os.environ:
        num_local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_local))


def keep_freed_memory() -> None:
    """On a CPU, let glibc reuse freed tensors instead of returning each to the kernel and faulting it in again.

    scripts/bench_allocator.py measures it. Elsewhere than under glibc there is no mallopt, and nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not torch.cuda.is_available():
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True)
class Start:
    """What a run needs to open its folder: the words of the command line, and the rank's voice."""

    command: str
    args: list[str]
    report: Reporter
    check_only: bool

    def open(self, config: TrainRMConfig | TrainPPOConfig, num_steps: int, headline: tuple[str, ...]) -> Path:
        """Make the run folder, on rank 0, once the input has proved good; return its path."""
        run_dir = None
        if distributed.rank() == 0:
            text = OmegaConf.to_yaml(OmegaConf.structured(config))
            run_dir = RunDir(config.run, self.command, self.args, text, distributed.world_size())
            write_log(run_dir.folder / "log.txt")
        self.report.open(run_dir, num_steps, headline)
        self.report.say(f"run folder: {run_folder(config.run)}")
        return run_folder(config.run)


def train_rm(config: TrainRMConfig, start: Start) -> None:
    """Train, evaluate, normalise and export a reward model."""
    tokenizer = load_tokenizer(config.model, "model")
    data = load_preferences(config.data, Renderer(tokenizer, config.data), config.run.seed)
    steps, report = num_steps(config, len(data.train)), start.report
    for note in data.notes:
        report.say(note)
    classifier = load_sequence_classifier(config.model, "model", tokenizer, config.run.seed, new_head=True)
    longest = max(row.num_tokens for row in (*data.train, *data.eval))
    check_length(classifier, longest, "model", "data.max_tokens")
    engine = TrainEngine(TokenScorer(classifier), torch_dtype(config.model), config.optim, steps, config.deepspeed)
    checkpoints = Checkpoints(run_folder(config.run) / "checkpoints", {"model": engine}, config.checkpoint.keep_last)
    trainer = RewardTrainer(config, engine, data.train, data.eval, pad_id(tokenizer), checkpoints, report)
    if config.check.num_prompts:
        report_checks(lambda: check_rm(trainer, tokenizer, bounds_of(config.model)), config.check, report)
    if start.check_only:
        return
    folder = start.open(config, steps, RM_HEADLINE)
    if state := _resume(config, checkpoints, report):
        trainer.step = state["step"]
    before = trainer.evaluate() if trainer.step == 0 and config.train.eval_every_steps else {}
    with report.progress(trainer.step):
        trainer.fit()
    state = engine.full_state_dict()
    weight = distributed.broadcast(state.get("model.score.weight"))
    assert weight is not None
    head, figures = trainer.calibrate(weight)
    after = trainer.evaluate(head)
    if report.run_dir is not None:
        export(classifier, {**state, "model.score.weight": head}, tokenizer, folder / "final")
        report.run_dir.write_json("summary.json", {"before": before, "after": after, **figures, "steps": steps})
    report.say(f"reward model: {folder / 'final'}")


def train_ppo(config: TrainPPOConfig, start: Start) -> None:
    """Build the four models, check the set-up, run PPO, export policy and value model."""
    report = start.report
    built = build_ppo(config, report)
    engines, sampler = built.engines, built.sampler
    trained = {"policy": engines.policy, "value_model": engines.value_model}
    checkpoints = Checkpoints(run_folder(config.run) / "checkpoints", trained, config.checkpoint.keep_last)
    trainer = PPOTrainer(config, engines, sampler, PPOData(built.prompts.train, built.texts), checkpoints, report)
    if config.check.num_prompts:
        texts = TextSide(built.tokenizer, built.reward_tokenizer, config.data)
        bounds = bounds_of(config.model, config.reward_model)
        report_checks(lambda: check_ppo(trainer, built.prompts.train, texts, bounds), config.check, report)
    if start.check_only:
        return
    folder = start.open(config, config.ppo.num_steps, PPO_HEADLINE)
    held_out = built.prompts.eval[: config.eval.num_prompts]
    book = AnswerBook(held_out, sampler, engines.reward_model, built.renderer, config.run.seed)
    report.say(f"answering {len(held_out)} held-out prompts, greedily and sampled")
    before = book.ask("before")
    if state := _resume(config, checkpoints, report):
        kl_coef = config.ppo.kl_coef if config.ppo.kl_target is None else state["kl_coef"]
        trainer.state = PPOState(kl_coef=kl_coef, step=state["step"])
    if trainer.state.step == 0:
        report.samples([asdict(answer) for answer in before])
    with report.progress(trainer.state.step):
        trainer.fit()
    after = book.ask("after")
    report.samples([asdict(answer) for answer in after])
    _export_trained(trained, built.modules, built.tokenizer, folder / "final", report)
    figures = compare(before, after)
    if report.run_dir is not None:
        report.run_dir.write_json("summary.json", {"held_out": figures, "steps": trainer.state.step})
    for mode, row in figures.items():
        low, high = row["difference_low"], row["difference_high"]
        report.say(
            f"held-out score, {mode}: {row['score_before']:.3f} -> {row['score_after']:.3f}, "
            f"difference {row['difference_mean']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
        )
    report.say(f"policy and value model: {folder / 'final'}")


def _resume(config: TrainRMConfig | TrainPPOConfig, checkpoints: Checkpoints, report: Reporter) -> dict[str, Any]:
    """Load the newest checkpoint when asked to; return the trainer's state in it, or {}."""
    if not config.run.resume:
        return {}
    state = checkpoints.load_newest()
    if report.run_dir is not None:
        report.run_dir.forget_after(state["step"])
    report.say(f"resumed after step {state['step']}")
    return state


def _export_trained(
    engines: dict[str, TrainEngine],
    models: dict[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    report: Reporter,
) -> None:
    for name, engine in engines.items():
        state = engine.full_state_dict()
        averaged = engine.full_ema(state) if engine.has_ema else None
        if report.run_dir is not None:
            export(models[name], state, tokenizer, folder / name)
            if averaged is not None:
                export(models[name], averaged, tokenizer, folder / f"{name}_ema")
