"""The checks of a reward-model run before its first update."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from rlhf_cli.data.token_batches import chunks
from rlhf_cli.report.check_table import Check
from rlhf_cli.run.checks import Bounds, largest, relative, spread, worst_of_all_ranks
from rlhf_cli.train.reward import RewardTrainer


@torch.no_grad()
def check_rm(trainer: RewardTrainer, end_id: int, bounds: Bounds) -> list[Check]:
    """Check the model and some training rows; collective.

    end_id: the token that ends every answer.
    """
    candidates = trainer.data.train
    rows = spread(candidates, [row.num_tokens for row in candidates], trainer.config.check.num_prompts)
    parts = chunks(rows, max(2, trainer.config.train.eval_micro_batch_size))
    together, again = (torch.cat([trainer.scores(part) for part in parts]) for _ in range(2))
    single = [replace(row, answers=(answer,)) for row in rows for answer in row.answers]
    alone = torch.cat([trainer.scores([row]) for row in single])
    num_open = sum(answer.response_ids[-1] != end_id for row in rows for answer in row.answers)
    num_early = sum(end_id in answer.response_ids[:-1] for row in rows for answer in row.answers)
    start = trainer.mean_loss(parts[0]) - math.log(2)
    bad_masks = "masks, positions or the index of the last token are wrong"
    noise = "the model has dropout, noise or random routing; switch it off"
    swapped = "a new head starts near 0.69; check whether chosen and rejected are swapped"
    checks = [
        Check("scores do not depend on padding or neighbours", relative(together, alone), bounds.score, bad_masks),
        Check("a second pass gives the same numbers", largest(together - again), bounds.same, noise),
        Check("every answer ends with its end token", num_open, 0, "training and PPO read the score there"),
        Check(
            "no answer contains an earlier end token", num_early, 0, "PPO's responses end at the first one", warns=True
        ),
        Check("the loss starts near or below ln 2", start, 1.0, swapped, warns=True),
    ]
    return worst_of_all_ranks(checks)
