"""From a configuration to a finished run: build the models, train, export."""

from __future__ import annotations

import ctypes
import faulthandler
import hashlib
import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import closing, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")  # the GGUF reader has a bar of its own

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import Ranking, load_preferences
from rlhf_cli.data.row_store import Ids
from rlhf_cli.data.splits import Splits
from rlhf_cli.data.token_batches import PackedSize, fingerprint_of
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import TrainEngine
from rlhf_cli.engine.checkpoint import Checkpoints, write_folder
from rlhf_cli.engine.factory import train_engine
from rlhf_cli.engine.roofline import matmul_flops
from rlhf_cli.models.export import export
from rlhf_cli.models.heads import TokenScorer
from rlhf_cli.models.load_models import check_length, load_sequence_classifier, torch_dtype
from rlhf_cli.models.load_tokenizer import load_tokenizer, pad_id
from rlhf_cli.models.model_size import ModelSize
from rlhf_cli.models.packed_forward import reads_packed
from rlhf_cli.plan.phases import Lengths
from rlhf_cli.report.library_logs import quieten_libraries
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.report.run_dir import run_folder
from rlhf_cli.run.build import PPOParts, build_ppo, load_once
from rlhf_cli.run.check_ppo import TextSide, check_ppo
from rlhf_cli.run.check_rm import check_rm
from rlhf_cli.run.checks import bounds_of, report_checks
from rlhf_cli.run.evaluation import Evaluator, HeldOut, Judges, compare
from rlhf_cli.run.failures import FailureHandler, forget_watch_folder, watch_folder
from rlhf_cli.run.session import RunSession
from rlhf_cli.system.processes import end_with_parent
from rlhf_cli.system.watchdog import PROGRESS
from rlhf_cli.train.ppo import PPOData, PPOState, PPOTrainer
from rlhf_cli.train.reward import RewardTrainer, num_steps, pair_records

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h

COLLECTIVES_LATER_S = 30  # than the watchdog, which knows where the ranks stand
RM_HEADLINE = ("loss", "accuracy", "margin", "lr")
PPO_HEADLINE = ("score", "kl", "reward", "response_length", "eos_rate", "clipfrac/policy")


def run(command: str, args: list[str], config: TrainRMConfig | TrainPPOConfig, text: str, check_only: bool) -> int:
    """Run one command on this rank and return its exit code; rank 0's options count on every rank.

    text: the options as YAML, interpolations unresolved; check_only: build and check everything, and leave it at that.
    """
    end_with_parent()
    quieten_libraries()
    _share_cores()
    keep_freed_memory()
    faulthandler.register(signal.SIGUSR2)  # says where every thread stands
    distributed.initialise(config.launch.timeout_s + COLLECTIVES_LATER_S)
    config = distributed.broadcast(config)
    folder = watch_folder()
    ending = FailureHandler(folder, config)
    ending.watchdog.start()
    report = Reporter(distributed.rank() == 0, config.report)
    try:
        random.seed(config.run.seed)
        np.random.seed(config.run.seed)
        torch.manual_seed(config.run.seed)
        start = RunSession(command, args, text, report, check_only, ending)
        if isinstance(config, TrainRMConfig):
            train_rm(config, start)
        else:
            train_ppo(config, start)
        distributed.barrier()  # nobody takes the watch folder away while another may still fail
    except (Exception, KeyboardInterrupt) as error:
        code = ending.failed(error)
        report.close(failed=True)
        return code
    report.close(failed=False)
    ending.watchdog.stop()
    forget_watch_folder(folder)
    distributed.shut_down()
    return 0


def _share_cores() -> None:
    """Where no launcher has done it, divide the cores among the ranks: with more threads than cores, all crawl."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // distributed.num_local_ranks()))


def keep_freed_memory() -> None:
    """On a CPU, let glibc reuse freed tensors instead of returning each to the kernel and faulting it in again.

    scripts/bench_allocator.py measures it. Elsewhere than under glibc there is no mallopt, and nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not torch.cuda.is_available():
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def train_rm(config: TrainRMConfig, start: RunSession) -> None:
    """Train, evaluate, normalise and export a reward model."""
    resumed = start.checkpoint(config.run)
    tokenizer = load_tokenizer(config.model, "model")
    renderer = Renderer(tokenizer, config.data)
    data = load_once(lambda: load_preferences(config.data, renderer, config.run.seed))
    steps, report = num_steps(config, len(data.train)), start.report
    for note in (*renderer.notes, *data.notes):
        report.say(note)
    planned = start.plan(config, _lengths(data, config.model.packing), steps)
    classifier = load_sequence_classifier(config.model, "model", tokenizer, config.run.seed, new_head=True)
    check_length(classifier, max(row.num_tokens for row in chain(data.train, data.eval)), "model", "data.max_tokens")
    model_size = ModelSize.of(classifier)  # before it is sharded
    engine = train_engine(TokenScorer(classifier), torch_dtype(config.model), config.optim, steps, config.deepspeed)
    checkpoints = Checkpoints(
        run_folder(config.run) / "checkpoints", {"model": engine}, config.checkpoint.keep_last, start.text
    )
    answers = (answer for row in chain(data.train, data.eval) for answer in row.answers)
    inputs = {"data": fingerprint_of((answer.prompt_ids, answer.response_ids) for answer in answers)}
    inputs |= _labels_fingerprint(data)
    boundary = start.boundary(config, checkpoints, inputs)
    trainer = RewardTrainer(config, engine, data.train, data.eval, pad_id(tokenizer), boundary, report)
    trainer.size, trainer.packed = model_size, reads_packed(classifier)
    if config.check.num_prompts:
        report_checks(lambda: check_rm(trainer, renderer.end_id, bounds_of(config.model)), config.check, report)
    if start.check_only:
        return
    folder = start.open(config, checkpoints, steps, RM_HEADLINE)
    if resumed is not None:
        trainer.step = start.resume(checkpoints, boundary, resumed)["step"]
    start.begin(config, trainer.step)
    report.measure_against(matmul_flops(torch_dtype(config.model)))
    before = start.logged(0) if resumed is not None else {}
    if not before and trainer.step == 0 and config.train.eval_every_steps:
        before = trainer.evaluate()
    with report.progress(trainer.step, start.signals):
        trainer.fit()
    figures = _finish_rm(trainer, classifier, renderer, folder / "final")
    memory = planned.compared(report)
    report.say(f"reward model: {folder / 'final'}")
    start.finish(steps, {"before": before, **figures, "steps": steps, "memory": memory})


def _finish_rm(trainer: RewardTrainer, classifier: PreTrainedModel, renderer: Renderer, folder: Path) -> dict[str, Any]:
    """Normalise the head, evaluate and export with it; return the figures of both."""
    PROGRESS.enter("export")
    state = trainer.model.full_state_dict()
    weight = distributed.broadcast(state.get("model.score.weight"))
    assert weight is not None
    head, figures = trainer.calibrate(weight)
    after = trainer.evaluate(torch.cat([head, weight.to(head)]))
    trainer.report.pairs(pair_records(trainer.eval_rows, trainer.eval_scores, renderer.response_text))
    state["model.score.weight"] = head
    num_bytes = trainer.model.export_bytes
    write_folder(lambda staging: export(classifier, state, renderer.tokenizer, staging), folder, num_bytes)
    return {"after": after, **figures}


def _labels_fingerprint(data: Splits[Ranking]) -> dict[str, str]:
    """Return a SHA-256 over what rows say beside their texts, by the option that is to be looked at; {} for nothing."""
    digest, found = hashlib.sha256(), False
    for place, row in enumerate(chain(data.train, data.eval)):
        labels = (row.margin, row.confidence, row.weight, row.ranks)
        if labels != (0.0, 1.0, 1.0, ()):
            found = True
            digest.update(f"{place} {labels}".encode())
    return {"numbers of data": digest.hexdigest()} if found else {}


def _lengths(data: Splits[Ranking], packing: bool) -> Lengths:
    """Measure preference data: the longest answer; packed, the most tokens of a row, shared out to its answers."""
    answers = longest = most_packed = 0
    for row in chain(data.train, data.eval):
        answers, longest = max(answers, len(row.answers)), max(longest, row.num_tokens)
        if packing:
            most_packed = max(most_packed, PackedSize.of(*row.answers).num_tokens)
    return Lengths(1, 1, -(-most_packed // answers) if packing else longest, answers)


def train_ppo(config: TrainPPOConfig, start: RunSession) -> None:
    """Build the models, check the set-up, run PPO, export policy and value model."""
    resumed = start.checkpoint(config.run)
    built = build_ppo(config, start.report)
    with closing(built.engines.judging):
        _train_built(config, start, built, resumed)


def _train_built(config: TrainPPOConfig, start: RunSession, built: PPOParts, resumed: Path | None) -> None:
    report = start.report
    start.ending.lengths = built.planned.lengths
    engines = built.engines
    trained = {"policy": engines.policy, "value_model": engines.value_model}
    checkpoints = Checkpoints(run_folder(config.run) / "checkpoints", trained, config.checkpoint.keep_last, start.text)
    boundary = start.boundary(config, checkpoints, _fingerprints(built))
    data = PPOData(built.prompts.train, built.texts)
    trainer = PPOTrainer(config, engines, built.sampler, built.ends, data, boundary, report)
    trainer.sizes, trainer.views.packed = built.sizes, built.packed
    if config.check.num_prompts:
        texts = TextSide(built.tokenizer, built.reward_tokenizer, config.data)
        scorer = [config.reward_model] if config.has_reward_model else []
        bounds = bounds_of(config.model, *scorer)
        report_checks(lambda: check_ppo(trainer, built.prompts.train, texts, bounds), config.check, report)
    if start.check_only:
        return
    folder = start.open(config, checkpoints, config.ppo.num_steps, PPO_HEADLINE)
    report.measure_against(matmul_flops(torch_dtype(config.model)))
    held_out = HeldOut(_answer_book(config, built, trainer), report)
    with trainer.saving_on_failure() if resumed is None else nullcontext():
        before = held_out.before()
    if resumed is not None:
        trainer.state = PPOState.of(start.resume(checkpoints, boundary, resumed))
    start.begin(config, trainer.state.step)
    held_out.tell_before(is_new=resumed is None)
    trainer.response_text = built.renderer.response_text
    trainer.evaluate = held_out.during
    held_out.make_up(trainer.state.step)
    with report.progress(trainer.state.step, start.signals):
        trainer.fit()
    with trainer.saving_on_failure():
        after = held_out.after(trainer.state.step)
    PROGRESS.enter("export")
    _export_trained(trained, built.modules, built.tokenizer, folder / "final")
    figures = compare(before, after)
    memory = built.planned.compared(report)
    _say_gains(figures, report)
    report.say(f"policy and value model: {folder / 'final'}")
    start.finish(trainer.state.step, {"held_out": figures, "steps": trainer.state.step, "memory": memory})


def _say_gains(figures: dict[str, dict[str, float]], report: Reporter) -> None:
    for mode, row in figures.items():
        low, high = row["difference_low"], row["difference_high"]
        report.say(
            f"held-out score, {mode}: {row['score_before']:.3f} -> {row['score_after']:.3f}, "
            f"difference {row['difference_mean']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
        )


def _answer_book(config: TrainPPOConfig, built: PPOParts, trainer: PPOTrainer) -> Evaluator:
    prompts = built.prompts.eval[: config.eval.num_prompts]
    judges = Judges(built.engines.judging, built.gold, trainer.views.token_kl)
    return Evaluator(prompts, built.sampler, built.ends, judges, built.renderer, config)


def _fingerprints(built: PPOParts) -> dict[str, str]:
    """Tell what a PPO run reads and does not change from what another one reads."""
    rows: Iterator[tuple[Ids, Ids]] = ((prompt.ids, ()) for prompt in chain(built.prompts.train, built.prompts.eval))
    texts = ((block.prompt_ids, block.response_ids) for block in built.texts)
    return {
        "data": fingerprint_of(chain(rows, texts)),
        **({"columns of data": _columns_fingerprint(built)} if built.engines.judging.external else {}),
        "model": built.engines.reference.fingerprint(),
        **{key: engine.fingerprint() for key, engine in built.engines.judging.engines.items()},
        **({} if built.gold is None else {"gold_reward_model": built.gold.engine.fingerprint()}),
    }


def _columns_fingerprint(built: PPOParts) -> str:
    """Return a SHA-256 over what functions and services are told of the prompts beside their text."""
    digest = hashlib.sha256()
    for prompt in chain(built.prompts.train, built.prompts.eval):
        digest.update(json.dumps(prompt.columns, sort_keys=True).encode())
    return digest.hexdigest()


def _export_trained(
    engines: dict[str, TrainEngine],
    models: dict[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    states: dict[str, tuple[PreTrainedModel, dict[str, Tensor]]] = {}
    for name, engine in engines.items():
        state = engine.full_state_dict()
        states[name] = models[name], state
        if engine.has_ema:
            states[f"{name}_ema"] = models[name], engine.full_ema(state)

    def write(staging: Path) -> None:
        for name, (model, state) in states.items():
            export(model, state, tokenizer, staging / name)

    write_folder(write, folder, sum(engine.export_bytes for engine in engines.values()))
