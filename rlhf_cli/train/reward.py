"""Reward-model training: Bradley-Terry on preference pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_cli.algo.losses import preference_correct, preference_loss
from rlhf_cli.algo.normalise import normalised_head
from rlhf_cli.config.schema import TrainRMConfig
from rlhf_cli.data.order import batch_indices, shuffled
from rlhf_cli.data.preferences import PreferencePair
from rlhf_cli.data.tokens import Sequence, chunks, collate, flatten
from rlhf_cli.engine import distributed
from rlhf_cli.engine.checkpoint import Checkpoints
from rlhf_cli.engine.zero import TrainEngine
from rlhf_cli.report.reporter import Reporter


def num_steps(config: TrainRMConfig, num_pairs: int) -> int:
    """Return the optimizer steps of a run: train.num_steps, or as many as num_epochs passes take, rounded up."""
    train = config.train
    return train.num_steps or math.ceil(train.num_epochs * num_pairs / train.batch_size)


class RewardTrainer:
    """One reward-model run: batch -> loss -> update, evaluation on held-out pairs in between."""

    def __init__(
        self,
        config: TrainRMConfig,
        model: TrainEngine,
        pairs: list[PreferencePair],
        eval_pairs: list[PreferencePair],
        pad_id: int,
        checkpoints: Checkpoints,
        report: Reporter,
    ) -> None:
        self.config = config
        self.model = model
        self.pairs = pairs
        self.eval_pairs = sorted(eval_pairs, key=lambda pair: pair.num_tokens)  # less padding
        self.pad_id = pad_id
        self.checkpoints = checkpoints
        self.report = report
        self.step = 0

    def fit(self) -> None:
        """Run from `self.step` to the last step."""
        evaluate_every, save_every = self.config.train.eval_every_steps, self.config.checkpoint.every_steps
        last = num_steps(self.config, len(self.pairs))
        while self.step < last:
            with self.report.time("update"):
                metrics, num_tokens = self.update()
            self.step += 1
            self.report.log(self.step, metrics, num_tokens)
            if evaluate_every and self.step % evaluate_every == 0 and self.step < last:
                self.evaluate()
            if save_every and self.step % save_every == 0:
                with self.report.time("checkpoint"):
                    self.checkpoints.save(self.step)

    def update(self) -> tuple[dict[str, float], int]:
        """Make one optimizer step; return its metrics, means over the global batch, and the tokens it read."""
        train = self.config.train
        indices = batch_indices(len(self.pairs), train.batch_size, self.step, self.config.run.seed)
        totals = torch.zeros(4, device=distributed.device())
        share = sorted(
            distributed.share([self.pairs[index] for index in indices]), key=lambda pair: pair.num_tokens
        )  # less padding
        for part in chunks(share, train.micro_batch_size):
            chosen, rejected = self._scores(part)
            loss = preference_loss(chosen, rejected).sum()
            self.model.backward(loss / train.batch_size)
            num_tokens = sum(
                len(s.prompt_ids) + len(s.response_ids) for pair in part for s in (pair.chosen, pair.rejected)
            )
            with torch.no_grad():
                correct, margin = preference_correct(chosen, rejected).sum(), (chosen - rejected).sum()
                totals += torch.stack([loss, correct, margin, torch.tensor(float(num_tokens), device=loss.device)])
        result = self.model.step()
        loss_sum, correct_sum, margin_sum, token_sum = distributed.global_sum(totals).tolist()
        metrics = {
            "loss": loss_sum / train.batch_size,
            "accuracy": correct_sum / train.batch_size,
            "margin": margin_sum / train.batch_size,
            "grad_norm": result.grad_norm,
            "lr": result.learning_rate,
            "skipped_updates": float(result.skipped),
        }
        return metrics, round(token_sum)

    def evaluate(self, head: Tensor | None = None) -> dict[str, float]:
        """Score the held-out pairs, report and return accuracy, the accuracy of "the longer wins", margin and loss.

        head: [1, d] to score with in place of the model's own.
        """
        if not self.eval_pairs:
            return {}
        if head is None:
            chosen, rejected = self._over_all(self.eval_pairs, self._scores)
        else:
            chosen, rejected = self._over_all(self.eval_pairs, lambda pairs: self._scores_with(head, pairs))
        metrics = {
            "eval/accuracy": float(preference_correct(chosen, rejected).mean()),
            "eval/longer_wins_accuracy": sum(pair.longer_wins for pair in self.eval_pairs) / len(self.eval_pairs),
            "eval/margin": float((chosen - rejected).mean()),
            "eval/loss": float(preference_loss(chosen, rejected).mean()),
        }
        self.report.log_eval(self.step, metrics)
        return metrics

    def calibrate(self, weight: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the normalised head [1, d], in the dtype of the trained one, and what it does; all ranks together.

        weight: [1, d] of the trained head. The calibration rows are both answers of training pairs; the figures are
        measured after rounding to the dtype in which the head is saved.
        """
        order = shuffled(len(self.pairs), f"{self.config.run.seed}/calibration")
        some = [self.pairs[index] for index in order[: self.config.train.num_calibration_pairs]]
        calibration = sorted(some, key=lambda pair: pair.num_tokens)
        chosen, rejected = self._over_all(calibration, self._hidden)
        hidden = torch.cat([chosen, rejected])
        old = weight[0].float()
        head = normalised_head(old, hidden).to(weight.dtype)
        scores, difference = hidden @ head.float(), chosen - rejected
        figures = {
            "calibration/mean": float(scores.mean()),
            "calibration/std": float(scores.std(correction=0)),
            "calibration/same_order": float(
                ((difference @ old).sign() == (difference @ head.float()).sign()).float().mean()
            ),
        }
        self.report.log_eval(self.step, figures)
        return head[None], figures

    def _scores(self, pairs: list[PreferencePair]) -> tuple[Tensor, Tensor]:
        """Scores of the chosen and the rejected answers, each [B]."""
        return self._forward(pairs)[0]

    def _scores_with(self, head: Tensor, pairs: list[PreferencePair]) -> tuple[Tensor, Tensor]:
        """Scores under another head [1, d], each [B]."""
        chosen, rejected = self._hidden(pairs)
        weight = head[0].float().to(chosen.device)
        return chosen @ weight, rejected @ weight

    def _hidden(self, pairs: list[PreferencePair]) -> tuple[Tensor, Tensor]:
        """What the head reads of the chosen and the rejected answers, each [B, d] float32."""
        return self._forward(pairs)[1]

    def _forward(self, pairs: list[PreferencePair]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        both = [_whole(pair.chosen) for pair in pairs] + [_whole(pair.rejected) for pair in pairs]
        batch = collate(both, self.pad_id, distributed.device())
        scores, hidden = self.model(**batch.model_inputs())
        last_scores, last_hidden = batch.at_last_token(scores), batch.at_last_token(hidden).float()
        half = len(pairs)
        return (last_scores[:half], last_scores[half:]), (last_hidden[:half], last_hidden[half:])

    @torch.no_grad()
    def _over_all(
        self, pairs: list[PreferencePair], function: Callable[[list[PreferencePair]], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Apply a function of pairs to this rank's part and join the results of all ranks, on the CPU, in order."""
        padded = distributed.pad_to_ranks(pairs)  # every rank makes the same number of forward passes
        parts = [function(part) for part in chunks(distributed.share(padded), self.config.train.eval_micro_batch_size)]
        local = [(chosen.cpu(), rejected.cpu()) for chosen, rejected in parts]
        joined = flatten(distributed.gather_all(local))
        chosen, rejected = (torch.cat(tensors)[: len(pairs)] for tensors in zip(*joined, strict=True))
        return chosen, rejected


def _whole(sequence: Sequence) -> Sequence:
    """Prompt and answer as one run of tokens, so that all padding is on the right."""
    return Sequence((), sequence.prompt_ids + sequence.response_ids)
