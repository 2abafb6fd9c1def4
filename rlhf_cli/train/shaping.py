"""From the scores of responses to the scores that enter the rewards."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_cli.algo.advantages import length_scores, min_length_scores, missing_eos_scores, repetition
from rlhf_cli.config.objectives import MissingEOS, PPOConfig
from rlhf_cli.train.batch import Rollout


def shaped_scores(rollout: Rollout, ppo: PPOConfig) -> Tensor:
    """Clip the scores [B], then subtract the penalties.

    Penalties apply to a missing EOS, to short and long responses, and to repetition.
    """
    scores = rollout.scores
    if ppo.reward_clip is not None:
        scores = scores.clamp(-ppo.reward_clip, ppo.reward_clip)
    replaces = ppo.missing_eos is MissingEOS.replace
    scores = missing_eos_scores(scores, rollout.ended, ppo.missing_eos_penalty, replaces)
    lengths = rollout.response_mask.sum(dim=1)
    scores = min_length_scores(scores, lengths, ppo.min_length, ppo.min_length_penalty)
    scores = length_scores(scores, lengths, ppo.length_penalty_from, ppo.length_penalty)
    return scores - ppo.repetition_penalty * repetitions(rollout, ppo.repetition_size)


def repetitions(rollout: Rollout, size: int) -> Tensor:
    """Return the share of n-grams of `size` tokens that repeat earlier ones, by response [B]."""
    return torch.tensor([repetition(sequence.response_ids, size) for sequence in rollout.sequences])
