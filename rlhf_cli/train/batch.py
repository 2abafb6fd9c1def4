"""The records that flow through a PPO step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.algo.kl import kl_k1
from rlhf_cli.algo.masking import length_mask
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.token_batches import TokenSequence


@dataclass(frozen=True)
class Samples:
    """This rank's prompts of a step, each with a sampled response."""

    prompts: list[Prompt]
    indices: list[int]  # of the prompts in the training data
    sequences: list[TokenSequence]


@dataclass(frozen=True)
class Episode:
    """One sampled response with all that is computed from it before the update. T: its length."""

    prompt_index: int  # in the training data
    sequence: TokenSequence
    ended: bool  # whether its last token is an end token
    logprobs: Tensor  # [T] of the sampled tokens under the policy that sampled them
    ref_logprobs: Tensor  # [T] of the same tokens under the frozen reference
    values: Tensor  # [T] the value model's estimate before each token
    entropy: Tensor  # [T] of the policy's distribution at each token, nats
    source_scores: Tensor  # [S] the score from each reward source, in order


@dataclass(frozen=True)
class Rollout:
    """The episodes of a step from all ranks, padded on the right. The same on every rank."""

    prompt_indices: list[int]  # B
    sequences: list[TokenSequence]  # B
    ended: Tensor  # [B] bool
    response_mask: Tensor  # [B, T] bool, 1 on response tokens up to and including EOS
    logprobs: Tensor  # [B, T]
    ref_logprobs: Tensor  # [B, T]
    values: Tensor  # [B, T]
    entropy: Tensor  # [B, T]
    source_scores: Tensor  # [B, S]
    scores: Tensor  # [B] their weighted sum

    @staticmethod
    def of(episodes: list[Episode], weigh: Callable[[Tensor], Tensor]) -> Rollout:
        """Pad episodes into one batch on the CPU; weigh: source scores [B, S] to scores [B]."""

        def padded(name: str) -> Tensor:
            rows = [getattr(episode, name) for episode in episodes]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

        lengths = [len(episode.sequence.response_ids) for episode in episodes]
        source_scores = torch.stack([episode.source_scores for episode in episodes])
        return Rollout(
            prompt_indices=[episode.prompt_index for episode in episodes],
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
        """Return each response's KL to the reference [B], estimator k1, in nats."""
        k1 = kl_k1(self.logprobs, self.ref_logprobs)
        return torch.where(self.response_mask, k1, torch.zeros_like(k1)).sum(dim=1)

    def not_finite(self) -> dict[int, str]:
        """Return the first kind of number that is NaN or infinite, by row, such as {3: "score"}."""
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
    """A rollout with the targets of its update."""

    rollout: Rollout
    rewards: Tensor  # [B, T] scores at the last token less the KL penalty
    advantages: Tensor  # [B, T] whitened over the real tokens of the batch
    returns: Tensor  # [B, T] advantages before whitening + values

    def rows(self, rows: list[int], mask: Tensor, device: torch.device) -> PPOTargets:
        """Select some rows; mask: their tokens to train on [B, T], to whose width they are cut."""
        rollout = self.rollout
        selected = (rollout.logprobs, rollout.ref_logprobs, rollout.values, self.advantages, self.returns)
        return PPOTargets(mask, *(tensor[rows, : mask.shape[1]].to(device) for tensor in selected))
