"""What flows through a PPO step, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.algo.advantages import length_scores, min_length_scores, missing_eos_scores, repetition
from rlhf_cli.algo.kl import kl_k1
from rlhf_cli.algo.masking import length_mask, masked_mean, masked_sum, masked_variance
from rlhf_cli.algo.normalise import Moments
from rlhf_cli.config.objectives import MissingEOS, PPOConfig
from rlhf_cli.data.token_batches import TokenSequence
from rlhf_cli.rewards.weighted_sum import WeightedSum


@dataclass(frozen=True)
class Episode:
    """One sampled response with all that was computed from it before the update. T is its own length."""

    sequence: TokenSequence
    ended: bool  # it ends in EOS
    logprobs: Tensor  # [T] of the sampled tokens under the policy that sampled them
    ref_logprobs: Tensor  # [T] of the same tokens under the frozen reference
    values: Tensor  # [T] the value model's value before each token
    entropy: Tensor  # [T] of the policy's distribution at each token, nats
    source_scores: Tensor  # [S] what each source says, in order


@dataclass(frozen=True)
class Rollout:
    """The episodes of a step, of all ranks, padded on the right. The same on every rank."""

    sequences: list[TokenSequence]  # B
    ended: Tensor  # [B] bool
    response_mask: Tensor  # [B, T] bool, 1 on response tokens up to and including EOS
    logprobs: Tensor  # [B, T]
    ref_logprobs: Tensor  # [B, T]
    values: Tensor  # [B, T]
    entropy: Tensor  # [B, T]
    source_scores: Tensor  # [B, S]
    scores: Tensor  # [B] of those the weighted sum

    @staticmethod
    def of(episodes: list[Episode], weigh: Callable[[Tensor], Tensor]) -> Rollout:
        """Pad episodes into one batch on the CPU; weigh: from [B, S] to the scores [B]."""

        def padded(name: str) -> Tensor:
            rows = [getattr(episode, name) for episode in episodes]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

        lengths = [len(episode.sequence.response_ids) for episode in episodes]
        source_scores = torch.stack([episode.source_scores for episode in episodes])
        return Rollout(
            sequences=[episode.sequence for episode in episodes],
            ended=torch.tensor([episode.ended for episode in episodes]),
            response_mask=length_mask(torch.tensor(lengths), max(lengths)),
            logprobs=padded("logprobs"),
            ref_logprobs=padded("ref_logprobs"),
            values=padded("values"),
            entropy=padded("entropy"),
            source_scores=source_scores,
            scores=weigh(source_scores),
        )

    def kl(self) -> Tensor:
        """Return the KL to the reference of each response [B], by estimator k1, in nats."""
        k1 = kl_k1(self.logprobs, self.ref_logprobs)
        return torch.where(self.response_mask, k1, torch.zeros_like(k1)).sum(dim=1)

    def not_finite(self) -> dict[int, str]:
        """Return what is NaN or infinite, by row: {3: "score"}; {} in a sound rollout."""
        found: dict[int, str] = {}
        for name in ("scores", "logprobs", "ref_logprobs", "values"):
            finite = getattr(self, name).reshape(len(self.sequences), -1).isfinite().all(dim=1)
            for row in (~finite).nonzero().flatten().tolist():
                found.setdefault(row, name.removesuffix("s"))
        return dict(sorted(found.items()))


@dataclass(frozen=True)
class PPOTargets:
    """What the update compares its own forward passes with, for some rows."""

    mask: Tensor  # [B, T] bool, 1 on the tokens to train on
    logprobs: Tensor  # [B, T] old_logprobs
    ref_logprobs: Tensor  # [B, T]
    values: Tensor  # [B, T] old_values
    advantages: Tensor  # [B, T]
    returns: Tensor  # [B, T]


@dataclass(frozen=True)
class PPOBatch:
    """A rollout with what the update needs of it."""

    rollout: Rollout
    rewards: Tensor  # [B, T] scores at the last token less the KL penalty
    advantages: Tensor  # [B, T] whitened over the real tokens of the batch
    returns: Tensor  # [B, T] advantages before whitening + values

    def rows(self, rows: list[int], mask: Tensor, device: torch.device) -> PPOTargets:
        """Take some rows, cut to the mask of those tokens [B, T] that are to be trained on."""
        rollout = self.rollout
        wanted = (rollout.logprobs, rollout.ref_logprobs, rollout.values, self.advantages, self.returns)
        return PPOTargets(mask, *(tensor[rows, : mask.shape[1]].to(device) for tensor in wanted))


def summary(batch: PPOBatch, ppo: PPOConfig) -> dict[str, float]:
    """Return the metrics of a rollout, over all ranks; names and formulas: docs/metrics.md."""
    rollout = batch.rollout
    mask = rollout.response_mask
    k1 = kl_k1(rollout.logprobs, rollout.ref_logprobs)
    num_responses = len(rollout.sequences)
    metrics = {
        "score": rollout.scores.mean(),
        "score_std": rollout.scores.std(correction=0),
        "kl": masked_sum(k1, mask) / num_responses,
        "kl_per_token": masked_mean(k1, mask),
        "reward": batch.rewards.sum() / num_responses,
        "return": masked_mean(batch.returns, mask),
        "value": masked_mean(rollout.values, mask),
        "advantage_std": masked_variance(batch.returns - rollout.values, mask).sqrt(),
        "entropy": masked_mean(rollout.entropy, mask),
        "response_length": mask.sum() / num_responses,
        "eos_rate": rollout.ended.float().mean(),
        "repetition": repetitions(rollout, ppo.repetition_size).mean(),
    }
    return {name: float(value) for name, value in metrics.items()}


def source_means(rollout: Rollout, weigh: WeightedSum, moments: dict[str, Moments]) -> dict[str, float]:
    """Return what each source says, and what it adds to the scores: means over the responses."""
    columns = {"reward": rollout.source_scores, "reward_part": weigh.parts(rollout.source_scores, moments)}
    return {
        f"{kind}/{name}": float(mean)
        for kind, scores in columns.items()
        for name, mean in zip(weigh.names, scores.mean(dim=0), strict=True)
    }


def per_response(rollout: Rollout) -> dict[str, list[float]]:
    """Return the score, the KL (k1, nats) and the length of every response, [B] each, for people to look at."""
    columns = {"scores": rollout.scores, "kl": rollout.kl()}
    figures = {name: [float(f"{value:.5g}") for value in column.tolist()] for name, column in columns.items()}
    return {**figures, "lengths": rollout.response_mask.sum(dim=1).tolist()}


def shaped_scores(rollout: Rollout, ppo: PPOConfig) -> Tensor:
    """Return the scores [B] that enter the rewards: clipped, then less what penalties take.

    They are for a missing EOS, for short and for long responses, and for repetitions.
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
    """Return the share of each response's runs of so many tokens that stand in it before, [B]."""
    return torch.tensor([repetition(sequence.response_ids, size) for sequence in rollout.sequences])
