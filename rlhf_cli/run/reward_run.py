"""Train, evaluate, normalise and export a reward model."""

from __future__ import annotations

import hashlib
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf_cli.config.schema import TrainRMConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import Ranking, load_preferences
from rlhf_cli.data.splits import Splits
from rlhf_cli.data.token_batches import PackedSize, fingerprint_of
from rlhf_cli.engine import distributed
from rlhf_cli.engine.checkpoint import write_folder
from rlhf_cli.engine.factory import train_engine
from rlhf_cli.engine.roofline import matmul_flops
from rlhf_cli.models.export import export
from rlhf_cli.models.heads import TokenScorer
from rlhf_cli.models.load_models import check_length, load_sequence_classifier, torch_dtype
from rlhf_cli.models.load_tokenizer import load_tokenizer, pad_id
from rlhf_cli.models.model_size import ModelSize
from rlhf_cli.models.packed_forward import reads_packed
from rlhf_cli.plan.phases import Lengths
from rlhf_cli.run.build import load_once
from rlhf_cli.run.check_rm import check_rm
from rlhf_cli.run.checks import bounds_of, report_checks
from rlhf_cli.run.memory_plan import plan_launch
from rlhf_cli.run.session import RunSession
from rlhf_cli.system.watchdog import PROGRESS
from rlhf_cli.train.reward import RankingData, RewardTrainer, num_steps, pair_records

HEADLINE = ("loss", "accuracy", "margin", "lr")
_HEAD = "model.score.weight"


def train_rm(config: TrainRMConfig, session: RunSession) -> None:
    """Run train-rm."""
    resumed, report = session.find_checkpoint(config.run), session.report
    tokenizer = load_tokenizer(config.model, "model")
    renderer = Renderer(tokenizer, config.data)
    data = load_once(lambda: load_preferences(config.data, renderer, config.run.seed))
    steps = num_steps(config, len(data.train))
    for note in (*renderer.notes, *data.notes):
        report.say(note)
    lengths = _lengths(data, config.model.packing)
    session.failures.use_lengths(lengths)
    planned = plan_launch(config, lengths, report, steps)
    classifier = load_sequence_classifier(config.model, "model", tokenizer, config.run.seed, new_head=True)
    check_length(classifier, max(row.num_tokens for row in chain(data.train, data.eval)), "model", "data.max_tokens")
    model_size = ModelSize.of(classifier)  # before sharding
    engine = train_engine(TokenScorer(classifier), torch_dtype(config.model), config.optim, steps, config.deepspeed)
    checkpoints = session.checkpoints(config, {"model": engine})
    hooks = session.hooks(config, checkpoints, _fingerprints(data))
    rankings = RankingData(data.train, data.eval, pad_id(tokenizer), reads_packed(classifier))
    trainer = RewardTrainer(config, engine, rankings, hooks, report, model_size)
    if config.check.num_prompts:
        report_checks(lambda: check_rm(trainer, renderer.end_id, bounds_of(config.model)), config.check, report)
    if session.check_only:
        return
    folder = session.open(config, checkpoints, steps, HEADLINE)
    if resumed is not None:
        trainer.restore(session.resume(checkpoints, hooks, resumed))
    session.begin(config, trainer.step)
    report.measure_against(matmul_flops(torch_dtype(config.model)))
    before = session.logged(0) if resumed is not None else {}
    if not before and trainer.step == 0 and config.train.eval_every_steps:
        before = trainer.evaluate()
    with report.progress(trainer.step, session.signals):
        trainer.fit()
    figures = _finish(trainer, classifier, renderer, session, folder / "final")
    memory = planned.report_peak(report)
    report.say(f"reward model: {folder / 'final'}")
    session.finish(steps, {"before": before, **figures, "steps": steps, "memory": memory})


def _finish(
    trainer: RewardTrainer, classifier: PreTrainedModel, renderer: Renderer, session: RunSession, folder: Path
) -> dict[str, Any]:
    """Normalise the head, evaluate and export the model with it; return the figures of both."""
    PROGRESS.enter("export")
    state = trainer.model.full_state_dict()
    weight = distributed.broadcast(state.get(_HEAD))
    assert weight is not None
    head, figures = trainer.calibrate(weight)
    after = trainer.evaluate(torch.cat([head, weight.to(head)]))
    session.report.pairs(pair_records(trainer.eval_rows, trainer.eval_scores, renderer.response_text))
    state[_HEAD] = head
    num_bytes = trainer.model.export_bytes
    write_folder(lambda staging: export(classifier, state, renderer.tokenizer, staging), folder, num_bytes)
    return {"after": after, **figures}


def _fingerprints(data: Splits[Ranking]) -> dict[str, str]:
    """Return fingerprints, by option, of what a resumed run must find unchanged."""
    answers = (answer for row in chain(data.train, data.eval) for answer in row.answers)
    tokens = fingerprint_of((answer.prompt_ids, answer.response_ids) for answer in answers)
    return {"data": tokens, **_labels_fingerprint(data)}


def _labels_fingerprint(data: Splits[Ranking]) -> dict[str, str]:
    """Return a SHA-256 over the numbers of all rows; {} if all have their defaults."""
    digest, found = hashlib.sha256(), False
    for number, row in enumerate(chain(data.train, data.eval)):
        labels = (row.margin, row.confidence, row.weight, row.ranks)
        if labels != (0.0, 1.0, 1.0, ()):
            found = True
            digest.update(f"{number} {labels}".encode())
    return {"numbers of data": digest.hexdigest()} if found else {}


def _lengths(data: Splits[Ranking], packing: bool) -> Lengths:
    """Measure the longest answer, or the mean answer of the row with the most packed tokens."""
    answers = longest = most_packed = 0
    for row in chain(data.train, data.eval):
        answers, longest = max(answers, len(row.answers)), max(longest, row.num_tokens)
        if packing:
            most_packed = max(most_packed, PackedSize.of(*row.answers).num_tokens)
    return Lengths(1, 1, -(-most_packed // answers) if packing else longest, answers)
