"""Forward passes of a PPO run's models, in micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf_cli.algo.kl import kl_k1
from rlhf_cli.algo.logprobs import token_logprobs, token_logprobs_and_entropy
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.data.token_batches import (
    EndTokens,
    SizedRow,
    TokenBatch,
    TokenSequence,
    collate,
    micro_batches,
    sized_rows,
)
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import FrozenEngine, TrainEngine
from rlhf_cli.rewards.ensemble import RewardEnsemble


@dataclass(frozen=True)
class Models:
    """The models of a PPO run; the reward model is one of `rewards`."""

    policy: TrainEngine
    reference: FrozenEngine
    value_model: TrainEngine
    rewards: RewardEnsemble


@dataclass(frozen=True)
class FirstPass:
    """Scoring's forward pass of the policy with its graph, which the first update reuses."""

    rows: list[int]  # this rank's, in the batch of all ranks
    tokens: TokenBatch
    num_read: int  # tokens that the pass read
    outputs: tuple[Tensor, Tensor]  # logprobs and entropy at each response token, [B, T] each


class HeldPolicy(ExitStack):
    """The policy's full weights during a step, and scoring's forward pass if the update reuses it.

    `close` gives both back; so does leaving the context, also after an error.
    """

    def __init__(self, policy: TrainEngine) -> None:
        super().__init__()
        self._policy = policy
        self._first_pass: FirstPass | None = None

    def gather(self, enabled: bool = True) -> None:
        """Gather the full weights until `close`; enabled=False leaves them as they are."""
        self.enter_context(self._policy.gathered(enabled))

    def keep(self, first_pass: FirstPass) -> None:
        """Keep a forward pass for the first update."""
        self.callback(self.take_first_pass)
        self._first_pass = first_pass

    def take_first_pass(self) -> FirstPass | None:
        """Return the kept forward pass, once."""
        first_pass, self._first_pass = self._first_pass, None
        return first_pass


def group_rows(
    rows: list[SizedRow], num_rows: int, num_tokens: int | None, in_step: bool = True
) -> list[tuple[list[int], bool]]:
    """Group this rank's rows into forward passes, by index; False: a pass that only keeps in step.

    in_step: make as many passes as every other rank. ZeRO-3 needs it if each pass gathers weights.
    """
    groups = micro_batches(rows, num_rows, num_tokens)
    if num_tokens is None or not in_step:
        return [(group, True) for group in groups]
    return distributed.pad_to_same_count(groups)


@dataclass
class ForwardPasses:
    """Runs the models at the sampling temperature, and counts the tokens they read."""

    config: TrainPPOConfig
    models: Models
    ends: EndTokens
    packed: bool  # whether all models read packed sequences
    num_read: int = field(default=0, init=False)  # tokens on this rank, without those of `rewards`
    device: torch.device = field(default_factory=distributed.device, init=False)

    def micro_batches(self, sequences: list[TokenSequence], in_step: bool = True) -> list[tuple[list[int], bool]]:
        """Group this rank's sequences into forward passes, as `group_rows` does."""
        ppo = self.config.ppo
        rows = sized_rows([(sequence,) for sequence in sequences], self.packed)
        return group_rows(rows, ppo.micro_batch_size, ppo.micro_batch_tokens, in_step)

    def map_micro_batches(
        self,
        engine: TrainEngine | FrozenEngine,
        sequences: list[TokenSequence],
        read: Callable[[list[TokenSequence]], Tensor],
    ) -> list[Tensor]:
        """Apply `read` to micro-batches; return its result for each sequence, on the CPU."""
        hold = self.config.rollout.gather
        found: dict[int, Tensor] = {}
        with engine.gathered(hold):
            for indices, _ in self.micro_batches(sequences, in_step=not hold):
                found |= zip(indices, read([sequences[index] for index in indices]).cpu(), strict=True)
        return [found[index] for index in range(len(sequences))]

    def collate(self, sequences: list[TokenSequence]) -> TokenBatch:
        """Make the batch of a forward pass, and count its tokens."""
        batch = collate(sequences, self.ends.pad_id, self.device)
        self.add_count(len(batch.packing.ids) if self.packed else sum(map(len, sequences)))
        return batch

    def restart_count(self) -> None:
        """Forget the tokens read so far."""
        self.num_read = 0

    def add_count(self, num_tokens: int) -> None:
        """Count tokens as read."""
        self.num_read += num_tokens

    def take_count(self, num_models: int) -> float:
        """Return the tokens that each of the models read since the last call, over all ranks."""
        read, self.num_read = self.num_read / num_models, 0
        return float(distributed.global_sum(torch.tensor(read, dtype=torch.float64, device=self.device)))

    def logits(self, model: TrainEngine | FrozenEngine, batch: TokenBatch) -> Tensor:
        """Return the logits [N, V] that predict the real response tokens."""
        logits: Tensor = model(batch.input_ids, **batch.before_response_tokens(), packing=batch.packing)
        return logits

    def policy_outputs(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Return the policy's logprobs and entropy of the response, [B, T] each, 0 on padding."""
        logits = self.logits(self.models.policy, batch)
        both = token_logprobs_and_entropy(logits, batch.real_response_ids(), self.config.rollout.temperature)
        return batch.per_response_token(both[0]), batch.per_response_token(both[1])

    def logprobs_and_entropy(self, sequences: list[TokenSequence]) -> Tensor:
        """Return the policy's logprobs and entropy of sequences, [B, 2, T]."""
        return torch.stack(self.policy_outputs(self.collate(sequences)), dim=1)

    def logprobs(self, model: TrainEngine | FrozenEngine, sequences: list[TokenSequence]) -> Tensor:
        """Return a model's logprob of each response token [B, T], 0 on padding."""
        batch, temperature = self.collate(sequences), self.config.rollout.temperature
        logits = self.logits(model, batch)
        return batch.per_response_token(token_logprobs(logits, batch.real_response_ids(), temperature))

    def values(self, batch: TokenBatch) -> Tensor:
        """Return the value model's estimate before each response token, [B, T], 0 on padding."""
        per_token, _ = self.models.value_model(batch.input_ids, packing=batch.packing)
        return batch.before_each_response_token(per_token)

    def response_logits(self, sequences: list[TokenSequence]) -> Tensor:
        """Return the policy's logits [N, V] that predict the response tokens, row after row."""
        return self.logits(self.models.policy, self.collate(sequences))

    def response_logprobs(self, sequences: list[TokenSequence]) -> list[Tensor]:
        """Return the policy's logprobs of each response, cut to its length, on the CPU."""
        logprobs = self.logprobs(self.models.policy, sequences).cpu()
        return [row[: len(sequence.response_ids)] for row, sequence in zip(logprobs, sequences, strict=True)]

    def map_logprobs(self, model: TrainEngine | FrozenEngine, sequences: list[TokenSequence]) -> list[Tensor]:
        """Return a model's logprobs of each response, in micro-batches, on the CPU."""
        return self.map_micro_batches(model, sequences, lambda part: self.logprobs(model, part))

    @torch.no_grad()
    def token_kl(self, sequences: list[TokenSequence]) -> list[Tensor]:
        """Return k1 = log p - log q of each response token, by sequence, on the CPU; collective."""
        own = self.map_logprobs(self.models.policy, sequences)
        reference = self.map_logprobs(self.models.reference, sequences)
        rows = zip(own, reference, sequences, strict=True)
        return [kl_k1(p, q)[: len(sequence.response_ids)] for p, q, sequence in rows]
