"""Check the set-up, run PPO, evaluate it on held-out prompts, and export policy and value model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing, nullcontext
from itertools import chain
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.data.row_store import Ids
from rlhf_cli.data.token_batches import fingerprint_of
from rlhf_cli.engine.base import TrainEngine
from rlhf_cli.engine.checkpoint import write_folder
from rlhf_cli.engine.roofline import matmul_flops
from rlhf_cli.models.export import export
from rlhf_cli.models.load_models import torch_dtype
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.run.build import PPOParts, build_ppo
from rlhf_cli.run.check_ppo import Tokenizers, check_ppo
from rlhf_cli.run.checks import bounds_of, report_checks
from rlhf_cli.run.evaluation import Evaluator, Scorers, compare
from rlhf_cli.run.session import RunSession
from rlhf_cli.system.watchdog import PROGRESS
from rlhf_cli.train.ppo import Monitors, PPOData, PPOTrainer

HEADLINE = ("score", "kl", "reward", "response_length", "eos_rate", "clipfrac/policy")


def train_ppo(config: TrainPPOConfig, session: RunSession) -> None:
    """Run train-ppo."""
    resumed = session.find_checkpoint(config.run)
    parts = build_ppo(config, session.report)
    session.failures.use_lengths(parts.planned.lengths)
    with closing(parts.passes.models.rewards):
        _train(config, session, parts, resumed)


def _train(config: TrainPPOConfig, session: RunSession, parts: PPOParts, resumed: Path | None) -> None:
    report, models = session.report, parts.passes.models
    trained = {"policy": models.policy, "value_model": models.value_model}
    checkpoints = session.checkpoints(config, trained)
    hooks = session.hooks(config, checkpoints, _fingerprints(parts))
    scorers = Scorers(models.rewards, parts.gold, parts.passes.token_kl)
    held_out = parts.prompts.eval[: config.eval.num_prompts]
    evaluator = Evaluator(config, held_out, parts.sampler, parts.passes.ends, scorers, parts.renderer, report)
    monitors = Monitors(parts.sizes, parts.renderer.response_text, evaluator.during)
    data = PPOData(parts.prompts.train, parts.texts)
    trainer = PPOTrainer(config, parts.passes, parts.sampler, data, hooks, report, monitors)
    if config.check.num_prompts:
        tokenizers = Tokenizers(parts.tokenizer, parts.reward_tokenizer, config.data)
        bounds = bounds_of(config.model, *([config.reward_model] if config.has_reward_model else []))
        report_checks(lambda: check_ppo(trainer, parts.prompts.train, tokenizers, bounds), config.check, report)
    if session.check_only:
        return
    folder = session.open(config, checkpoints, config.ppo.num_steps, HEADLINE)
    report.measure_against(matmul_flops(torch_dtype(config.model)))
    with trainer.saving_on_failure() if resumed is None else nullcontext():
        before = evaluator.before()
    if resumed is not None:
        trainer.restore(session.resume(checkpoints, hooks, resumed))
    session.begin(config, trainer.state.step)
    evaluator.log_before(is_new=resumed is None)
    evaluator.repeat_missed(trainer.state.step)
    with report.progress(trainer.state.step, session.signals):
        trainer.fit()
    with trainer.saving_on_failure():
        after = evaluator.after(trainer.state.step)
    PROGRESS.enter("export")
    _export(trained, parts.modules, parts.tokenizer, folder / "final")
    figures = compare(before, after)
    memory = parts.planned.report_peak(report)
    _report_gains(figures, report)
    report.say(f"policy and value model: {folder / 'final'}")
    session.finish(trainer.state.step, {"held_out": figures, "steps": trainer.state.step, "memory": memory})


def _report_gains(figures: dict[str, dict[str, float]], report: Reporter) -> None:
    for mode, row in figures.items():
        low, high = row["difference_low"], row["difference_high"]
        report.say(
            f"held-out score, {mode}: {row['score_before']:.3f} -> {row['score_after']:.3f}, "
            f"difference {row['difference_mean']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
        )


def _fingerprints(parts: PPOParts) -> dict[str, str]:
    """Return fingerprints, by option, of what a resumed run must find unchanged."""
    models, prompts = parts.passes.models, chain(parts.prompts.train, parts.prompts.eval)
    rows: Iterator[tuple[Ids, Ids]] = ((prompt.ids, ()) for prompt in prompts)
    texts = ((block.prompt_ids, block.response_ids) for block in parts.texts)
    return {
        "data": fingerprint_of(chain(rows, texts)),
        **({"columns of data": _columns_fingerprint(parts)} if models.rewards.external else {}),
        "model": models.reference.fingerprint(),
        **{key: engine.fingerprint() for key, engine in models.rewards.engines.items()},
        **({} if parts.gold is None else {"gold_reward_model": parts.gold.engine.fingerprint()}),
    }


def _columns_fingerprint(parts: PPOParts) -> str:
    """Return a SHA-256 over the columns that reward functions and services receive."""
    digest = hashlib.sha256()
    for prompt in chain(parts.prompts.train, parts.prompts.eval):
        digest.update(json.dumps(prompt.columns, sort_keys=True).encode())
    return digest.hexdigest()


def _export(
    engines: dict[str, TrainEngine],
    modules: dict[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    """Export the trained models and the average of their weights, if there is one; collective."""
    states: dict[str, tuple[PreTrainedModel, dict[str, Tensor]]] = {}
    for name, engine in engines.items():
        state = engine.full_state_dict()
        states[name] = modules[name], state
        if engine.has_ema:
            states[f"{name}_ema"] = modules[name], engine.full_ema(state)

    def write(staging: Path) -> None:
        for name, (model, state) in states.items():
            export(model, state, tokenizer, staging / name)

    write_folder(write, folder, sum(engine.export_bytes for engine in engines.values()))
