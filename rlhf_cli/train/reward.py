"""Reward-model training: the Bradley-Terry loss on every pair of a prompt's ranked answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.algo.losses import centering_loss, preference_correct, preference_loss
from rlhf_cli.algo.normalise import normalised_head
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.schema import TrainRMConfig
from rlhf_cli.data.preferences import Ranking
from rlhf_cli.data.row_store import sorted_rows
from rlhf_cli.data.sampler import batch_indices, shuffled
from rlhf_cli.data.token_batches import TokenSequence, chunks, collate, flatten, sized_rows
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import TrainEngine
from rlhf_cli.engine.roofline import Work
from rlhf_cli.models.model_size import ModelSize
from rlhf_cli.train.forward import group_rows
from rlhf_cli.train.run_log import RunLog
from rlhf_cli.train.step_hooks import StepHooks


def num_steps(config: TrainRMConfig, num_rows: int) -> int:
    """Return the optimizer steps of a run: train.num_steps, or enough for num_epochs epochs."""
    train = config.train
    return train.num_steps or math.ceil(train.num_epochs * num_rows / train.batch_size)


@dataclass(frozen=True)
class Pairs:
    """All pairs of the answers of some rankings: P pairs of N answers."""

    better: Tensor  # [P] index of the better answer among all answers
    worse: Tensor  # [P] index of the worse one
    weight: Tensor  # [P] 1 / pairs of its ranking: C(K, 2) for K answers without ties
    margin: Tensor  # [P]
    confidence: Tensor  # [P]
    importance: Tensor  # [P] weight of its row in the loss; the mean over all rows is 1

    @staticmethod
    def of(
        rankings: Sequence[Ranking], label_smoothing: float, device: torch.device, mean_weight: float = 1.0
    ) -> Pairs:
        """List the pairs of rankings whose answers are concatenated; mean_weight: of all rows."""
        rows: list[tuple[int, int, float, float, float, float]] = []
        first = 0
        for ranking in rankings:
            confidence = min(ranking.confidence, 1 - label_smoothing)
            weight = 1 / len(ranking.pairs)
            numbers = (weight, ranking.margin, confidence, ranking.weight / mean_weight)
            rows += [(first + a, first + b, *numbers) for a, b in ranking.pairs]
            first += len(ranking.answers)
        better, worse, *columns = zip(*rows, strict=True)
        indices = (torch.tensor(column, device=device) for column in (better, worse))
        return Pairs(*indices, *(torch.tensor(column, dtype=torch.float32, device=device) for column in columns))

    def loss(self, scores: Tensor) -> Tensor:
        """Return the weighted sum over rankings of the mean loss over their pairs; scores: [N]."""
        losses = preference_loss(scores[self.better], scores[self.worse], self.margin, self.confidence)
        return (self.weight * self.importance * losses).sum()

    def centering(self, scores: Tensor) -> Tensor:
        """Return the centering term, summed in the same way."""
        losses = centering_loss(scores[self.better], scores[self.worse])
        return (self.weight * self.importance * losses).sum()

    def correct(self, scores: Tensor) -> Tensor:
        """Return each ranking's share of pairs in the right order, summed over rankings."""
        return (self.weight * preference_correct(scores[self.better], scores[self.worse])).sum()

    def margins(self, scores: Tensor) -> Tensor:
        """Return the better score less the worse score [P]."""
        return scores[self.better] - scores[self.worse]


def mean_weight(rows: Sequence[Ranking], which: str) -> float:
    """Return the mean weight of rows, 1 without rows; raise InputError if all weights are 0."""
    mean = math.fsum(row.weight for row in rows) / len(rows) if rows else 1.0
    if mean == 0:
        raise InputError(f"data.weight_column: every {which} row has weight 0; at least one must be above 0")
    return mean


@dataclass(frozen=True)
class RankingData:
    """The rows of a reward-model run, and how the model reads them."""

    train: Sequence[Ranking]
    eval: Sequence[Ranking]
    pad_id: int
    packed: bool = False  # whether the model reads packed sequences


class RewardTrainer:
    """One reward-model run: updates, with evaluations on held-out rows in between.

    size: of the model, to log perf/.
    """

    def __init__(
        self,
        config: TrainRMConfig,
        model: TrainEngine,
        data: RankingData,
        hooks: StepHooks,
        report: RunLog,
        size: ModelSize | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.data = data
        self.eval_rows = sorted_rows(data.eval, key=lambda row: row.num_tokens)  # pads less
        self.mean_weight = mean_weight(data.train, "training")
        self.eval_mean_weight = mean_weight(data.eval, "held-out")
        self.hooks = hooks
        self.report = report
        self.size = size
        self.step = 0  # steps completed
        self.eval_scores = torch.zeros(0, 1)  # [N, k] of the answers of eval_rows
        self._num_read = 0  # tokens read in this update, on this rank

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.step = saved["step"]

    def fit(self) -> None:
        """Train from `self.step` to the last step."""
        evaluate_every = self.config.train.eval_every_steps
        best_is_from_eval = (self.config.checkpoint.best_metric or "").startswith("eval/")
        last = num_steps(self.config, len(self.data.train))
        while self.step < last:
            self.hooks.before_step({"step": self.step})
            with self.report.time("update"):
                metrics, num_tokens = self.update()
            work = self._work()
            self.step += 1
            self.report.log(self.step, metrics, num_tokens, work)
            self.hooks.check(self.step, metrics)
            if evaluate_every and self.step % evaluate_every == 0 and (self.step < last or best_is_from_eval):
                metrics |= self.evaluate()
            self.hooks.after_step({"step": self.step}, metrics)
        self.hooks.after_last_step({"step": self.step})

    def _work(self) -> dict[str, Work]:
        if self.size is None:
            return {}
        lengths = [len(answer) for row in self._batch() for answer in row.answers]
        read = float(distributed.global_sum(torch.tensor(float(self._num_read), device=distributed.device())))
        return {"update": Work(3 * self.size.forward_flops(1, lengths, 0, read), read)}

    def _batch(self) -> list[Ranking]:
        """Return the rows of the step, for all ranks."""
        rows, size, seed = self.data.train, self.config.train.batch_size, self.config.run.seed
        return [rows[index] for index in batch_indices(len(rows), size, self.step, seed)]

    def update(self) -> tuple[dict[str, float], int]:
        """Make one update; return its metrics, means over the global batch, and its tokens."""
        train = self.config.train
        totals = torch.zeros(5, device=distributed.device())
        self._num_read = 0
        rows = self._batch()
        share = distributed.balanced_share(rows, [row.num_tokens for row in rows])
        with self.model.gathered(self.config.train.gather):
            for part, real in self._micro_batches(share):
                totals += self._accumulate(part, real)
        result = self.model.step(self.step)
        sums = distributed.global_sum(totals).tolist()
        loss, centering, correct, margin = (total / train.batch_size for total in sums[:4])
        metrics = {"loss": loss, "accuracy": correct, "margin": margin}
        if train.centering_coef:
            metrics["centering"] = centering
        metrics |= {
            "grad_norm": result.grad_norm,
            "lr": result.learning_rate,
            "skipped_updates": float(result.skipped),
        }
        return metrics, round(sums[4])

    def _micro_batches(self, rows: list[Ranking]) -> list[tuple[list[Ranking], bool]]:
        """Group this rank's rows into forward passes; False: a pass that only keeps in step."""
        train = self.config.train
        sizes = sized_rows([row.answers for row in rows], self.data.packed)
        groups = group_rows(sizes, train.micro_batch_size, train.micro_batch_tokens)
        return [([rows[index] for index in group], real) for group, real in groups]

    def _accumulate(self, rows: list[Ranking], real: bool) -> Tensor:
        """Accumulate gradients; return the sums of loss, centering, correct, margin and tokens.

        Rows that are not real only keep ranks in step, and have no weight.
        """
        train = self.config.train
        pairs = self._pairs(rows)
        if not real:
            pairs = replace(pairs, weight=torch.zeros_like(pairs.weight))
        scores, _ = self._forward(rows)
        loss, centering = pairs.loss(scores), pairs.centering(scores)
        objective = loss + train.centering_coef * centering if train.centering_coef else loss
        self.model.backward(objective / train.batch_size)
        with torch.no_grad():
            num_tokens = sum(len(answer) for row in rows for answer in row.answers) * real
            margin = (pairs.weight * pairs.margins(scores)).sum()
            tokens = torch.tensor(float(num_tokens), device=loss.device)
            return torch.stack([loss, centering, pairs.correct(scores), margin, tokens])

    def evaluate(self, head: Tensor | None = None) -> dict[str, float]:
        """Score the held-out rows; log and return the metrics under eval/.

        head: [k, d] replaces the model's own head; the metrics are those of its first row.
        """
        if not self.eval_rows:
            return {}
        with self.report.evaluating():
            if head is None:
                found = self._over_all(self.eval_rows, self._scores)[:, None]
            else:
                found = self._over_all(self.eval_rows, self._hidden) @ head.float().cpu().T
        self.eval_scores, scores = found, found[:, 0]
        own_mean = self.eval_mean_weight
        pairs = Pairs.of(self.eval_rows, self.config.train.label_smoothing, torch.device("cpu"), own_mean)
        size = len(self.eval_rows)
        metrics = {
            "eval/accuracy": float(pairs.correct(scores)) / size,
            "eval/longer_wins_accuracy": sum(row.longer_wins for row in self.eval_rows) / size,
            "eval/margin": float((pairs.weight * pairs.margins(scores)).sum()) / size,
            "eval/loss": float(pairs.loss(scores)) / size,
        }
        self.report.log_eval(self.step, metrics)
        return metrics

    def calibrate(self, weight: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the normalised head [1, d] and its statistics on training rows; collective.

        weight: [1, d] of the trained head. The new head is measured after rounding to its dtype.
        """
        order = shuffled(len(self.data.train), f"{self.config.run.seed}/calibration")
        some = [self.data.train[index] for index in order[: self.config.train.num_calibration_pairs]]
        calibration = sorted(some, key=lambda row: row.num_tokens)
        hidden = self._over_all(calibration, self._hidden)
        old = weight[0].float()
        head = normalised_head(old, hidden).to(weight.dtype)
        scores = hidden @ head.float()
        pairs = self._pairs(calibration, torch.device("cpu"))
        same_order = pairs.margins(hidden @ old).sign() == pairs.margins(scores).sign()
        figures = {
            "calibration/mean": float(scores.mean()),
            "calibration/std": float(scores.std(correction=0)),
            "calibration/same_order": float(same_order.float().mean()),
        }
        self.report.log_eval(self.step, figures)
        return head[None], figures

    @torch.no_grad()
    def scores(self, rows: list[Ranking]) -> Tensor:
        """Return the scores of all answers of some rows, [N] on the CPU, from one batch."""
        return self._scores(rows).cpu()

    @torch.no_grad()
    def mean_loss(self, rows: list[Ranking]) -> float:
        """Return the mean preference loss of some rows."""
        return float(self._pairs(rows).loss(self._scores(rows))) / len(rows)

    def _pairs(self, rows: list[Ranking], device: torch.device | None = None) -> Pairs:
        return Pairs.of(rows, self.config.train.label_smoothing, device or distributed.device(), self.mean_weight)

    def _scores(self, rows: list[Ranking]) -> Tensor:
        """Return the scores of all answers of some rows, [N]."""
        return self._forward(rows)[0]

    def _hidden(self, rows: list[Ranking]) -> Tensor:
        """Return the head's input for all answers of some rows, [N, d] float32."""
        return self._forward(rows)[1]

    def _forward(self, rows: list[Ranking]) -> tuple[Tensor, Tensor]:
        texts = [_as_one_text(answer) for row in rows for answer in row.answers]
        batch = collate(texts, self.data.pad_id, distributed.device())
        self._num_read += len(batch.packing.ids) if self.data.packed else sum(map(len, texts))
        scores, hidden = self.model(batch.input_ids, packing=batch.packing)
        return batch.at_last_token(scores), batch.at_last_token(hidden).float()

    @torch.no_grad()
    def _over_all(self, rows: Sequence[Ranking], function: Callable[[list[Ranking]], Tensor]) -> Tensor:
        """Apply a function to this rank's share; join all ranks' results, [N, ...], on the CPU."""
        padded = distributed.pad_to_ranks(list(range(len(rows))))  # keeps ranks in step
        parts = chunks(distributed.share(padded), self.config.train.eval_micro_batch_size)
        found = [function([rows[index] for index in part]).cpu() for part in parts]
        joined = flatten(distributed.gather_all(found))
        return torch.cat(joined)[: sum(len(row.answers) for row in rows)]


def pair_records(
    rows: Sequence[Ranking], scores: Tensor, text: Callable[[tuple[int, ...]], str]
) -> list[dict[str, Any]]:
    """Return every pair of some rankings as records for pairs.jsonl.

    scores: [N, 2] of all answers in order, by the exported and by the trained head. Differences of
    the latter are the log odds that training fits. text: decodes ids. A pair's weight is 1 / the
    pairs of its ranking.
    """
    records, first = [], 0
    for row in rows:
        texts = [text(answer.response_ids) for answer in row.answers]
        prompt = json.loads(row.prompt_key)[-1]["content"]
        for better, worse in row.pairs:
            records.append(
                {
                    "prompt": prompt,
                    "chosen": texts[better],
                    "rejected": texts[worse],
                    "score_chosen": float(scores[first + better, 0]),
                    "score_rejected": float(scores[first + worse, 0]),
                    "log_odds": float(scores[first + better, 1] - scores[first + worse, 1]),
                    "tokens_chosen": len(row.answers[better].response_ids),
                    "tokens_rejected": len(row.answers[worse].response_ids),
                    "weight": 1 / len(row.pairs),
                    "category": row.category,
                }
            )
        first += len(row.answers)
    return records


def _as_one_text(sequence: TokenSequence) -> TokenSequence:
    """Make the prompt part of the answer, so that all padding is on the right."""
    return TokenSequence((), sequence.prompt_ids + sequence.response_ids)
