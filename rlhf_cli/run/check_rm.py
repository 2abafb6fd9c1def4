"""The checks of a reward-model run: the model and its rows."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from rlhf_cli.data.preferences import Ranking
from rlhf_cli.data.token_batches import chunks
from rlhf_cli.report.check_table import Check
from rlhf_cli.run.checks import Bounds, largest, relative, spread, worst_of_all_ranks
from rlhf_cli.train.reward import RewardTrainer


@torch.no_grad()
def check_rm(trainer: RewardTrainer, end_id: int, bounds: Bounds) -> list[Check]:
    """Check the model and the rows of a reward-model run that has made no update; all ranks together.

    end_id: the token that ends every answer.
    """
    rows = spread(trainer.rows, [row.num_tokens for row in trainer.rows], trainer.config.check.num_prompts)
    parts = chunks(rows, max(2, trainer.config.train.eval_micro_batch_size))
    together, again = (torch.cat([trainer.scores(part) for part in parts]) for _ in range(2))
    alone = torch.cat([trainer.scores([_lone(row, place)]) for row in rows for place in range(len(row.answers))])
    num_open = sum(answer.response_ids[-1] != end_id for row in rows for answer in row.answers)
    num_early = sum(end_id in answer.response_ids[:-1] for row in rows for answer in row.answers)
    checks = [
        Check(
            "scores do not change with padding and neighbours",
            relative(together, alone),
            bounds.score,
            "masks, positions or the place of the last token are wrong",
        ),
        Check(
            "a second look gives the same numbers",
            largest(together - again),
            bounds.same,
            "the model has dropout, noise or a routing that changes; switch it off",
        ),
        Check("every answer ends in its end token", num_open, 0, "the score is read there, in training and in PPO"),
        Check("no answer holds another end token", num_early, 0, "PPO's responses end at the first one", warns=True),
        Check(
            "the loss does not start far above ln 2",
            trainer.mean_loss(parts[0]) - math.log(2),
            1.0,
            "a fresh head starts near 0.69; are better and worse swapped, or is the model a trained one?",
            warns=True,
        ),
    ]
    return worst_of_all_ranks(checks)


def _lone(row: Ranking, place: int) -> Ranking:
    return replace(row, answers=(row.answers[place],))
