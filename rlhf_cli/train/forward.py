"""What the four models of a PPO run say of sequences, in forward passes of bounded size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.algo.kl import kl_k1
from rlhf_cli.algo.logprobs import token_logprobs, token_logprobs_and_entropy
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.data.token_batches import EndTokens, TokenBatch, TokenSequence, collate, micro_batches, sized_rows
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import FrozenEngine, TrainEngine
from rlhf_cli.rewards.ensemble import RewardEnsemble


@dataclass(frozen=True)
class Models:
    """The models of a PPO run, and all that scores."""

    policy: TrainEngine
    reference: FrozenEngine
    judging: RewardEnsemble
    value_model: TrainEngine


class ForwardPasses:
    """Asks the models; all at one temperature, that of the sampling. It counts the tokens that they read."""

    def __init__(self, config: TrainPPOConfig, models: Models, ends: EndTokens) -> None:
        self.config = config
        self.models = models
        self.ends = ends
        self.packed = False  # whether all four models read packed texts
        self.num_read = 0  # tokens that models but the reward model have read in this phase, on this rank
        self.device = distributed.device()

    def micro_batches(self, sequences: list[TokenSequence], in_step: bool = True) -> list[tuple[list[int], bool]]:
        """Group this rank's sequences into forward passes; False: for company only.

        in_step: as many passes as on every other rank, which ZeRO-3 wants where it gathers in each.
        """
        ppo = self.config.ppo
        rows = sized_rows([(sequence,) for sequence in sequences], self.packed)
        groups = micro_batches(rows, ppo.micro_batch_size, ppo.micro_batch_tokens)
        if ppo.micro_batch_tokens is None or not in_step:
            return [(group, True) for group in groups]
        return distributed.pad_to_same_count(groups)

    def map_micro_batches(
        self,
        engine: TrainEngine | FrozenEngine,
        sequences: list[TokenSequence],
        read: Callable[[list[TokenSequence]], Tensor],
    ) -> list[Tensor]:
        """Apply `read` to micro-batches of sequences; return on the CPU what it gives for each of them."""
        hold = self.config.rollout.gather
        found: dict[int, Tensor] = {}
        with engine.gathered(hold):
            for places, _ in self.micro_batches(sequences, in_step=not hold):
                found |= zip(places, read([sequences[place] for place in places]).cpu(), strict=True)
        return [found[place] for place in range(len(sequences))]

    def collate(self, sequences: list[TokenSequence]) -> TokenBatch:
        """Pad or pack sequences into a batch that will be read."""
        batch = collate(sequences, self.ends.pad_id, self.device)
        self.num_read += len(batch.packing.ids) if self.packed else sum(map(len, sequences))
        return batch

    def take_read(self, num_models: int) -> float:
        """Return the tokens that each of some models has read since the last call, all ranks together."""
        read, self.num_read = self.num_read / num_models, 0
        return float(distributed.global_sum(torch.tensor(read, dtype=torch.float64, device=self.device)))

    def logits(self, model: TrainEngine | FrozenEngine, batch: TokenBatch) -> Tensor:
        """Return the logits [N, V] that predict the real response tokens."""
        logits: Tensor = model(batch.input_ids, **batch.before_response_tokens(), packing=batch.packing)
        return logits

    def policy(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Return the policy's logprobs and entropy at each response token, [B, T] each, 0 on padding."""
        logits = self.logits(self.models.policy, batch)
        both = token_logprobs_and_entropy(logits, batch.real_response_ids(), self.config.rollout.temperature)
        return batch.per_response_token(both[0]), batch.per_response_token(both[1])

    def logprobs_and_entropy(self, sequences: list[TokenSequence]) -> Tensor:
        """Return the same of some sequences, [B, 2, T]."""
        return torch.stack(self.policy(self.collate(sequences)), dim=1)

    def logprobs(self, model: TrainEngine | FrozenEngine, sequences: list[TokenSequence]) -> Tensor:
        """Return a model's logprobs of each response token [B, T], 0 on padding."""
        batch, temperature = self.collate(sequences), self.config.rollout.temperature
        logits = self.logits(model, batch)
        return batch.per_response_token(token_logprobs(logits, batch.real_response_ids(), temperature))

    def values(self, batch: TokenBatch) -> Tensor:
        """Return the value model's value before each response token, [B, T], 0 on padding."""
        per_token, _ = self.models.value_model(batch.input_ids, packing=batch.packing)
        return batch.before_each_response_token(per_token)

    def response_logits(self, sequences: list[TokenSequence]) -> Tensor:
        """Return the policy's logits [N, V] that predict the response tokens, row after row, as the update does."""
        return self.logits(self.models.policy, self.collate(sequences))

    def response_logprobs(self, sequences: list[TokenSequence]) -> list[Tensor]:
        """Return the policy's logprobs of each response, [its length] on the CPU, as the update sees them."""
        logprobs = self.logprobs(self.models.policy, sequences).cpu()
        return [row[: len(sequence.response_ids)] for row, sequence in zip(logprobs, sequences, strict=True)]

    @torch.no_grad()
    def token_kl(self, sequences: list[TokenSequence]) -> list[Tensor]:
        """Return log p - log q of each response token, [its length] a sequence, on the CPU; all ranks together."""
        models = self.models
        own = self.map_micro_batches(models.policy, sequences, lambda part: self.logprobs(models.policy, part))
        reference = self.map_micro_batches(
            models.reference, sequences, lambda part: self.logprobs(models.reference, part)
        )
        rows = zip(own, reference, sequences, strict=True)
        return [kl_k1(p, q)[: len(sequence.response_ids)] for p, q, sequence in rows]
