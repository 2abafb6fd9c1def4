"""The arithmetic of a PPO step, as perf/ counts it."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_cli.data.token_batches import TokenSequence
from rlhf_cli.models.model_size import ModelSize
from rlhf_cli.report.reporter import Work


@dataclass
class Read:
    """The tokens that each model reads in a step, all ranks together; of packed texts, every one once."""

    score: float = 0.0
    update: float = 0.0
    num_epochs: float = 0.0  # of the update; fewer than ppo.num_epochs where it ends early
    reused: bool = False  # the policy's first pass of the update is that of the scoring


@dataclass(frozen=True)
class Sizes:
    """The arithmetic of the models that generate and of those that score."""

    policy: ModelSize
    scorer: ModelSize
    has_reward_model: bool = True  # of the scorer's size, beside the value model

    def work(self, sequences: list[TokenSequence], read: Read, trains_policy: bool) -> dict[str, Work]:
        """Return what a step on such sequences takes, phase by phase."""
        lengths = [len(sequence) for sequence in sequences]
        num_response = sum(len(sequence.response_ids) for sequence in sequences)

        def passes(num_passes: float, num_read: float, trains_policy: bool = True) -> float:
            """The arithmetic of so many passes of a scorer and a policy, in which each reads num_read tokens."""
            scorer = self.scorer.forward_flops(num_passes, lengths, 0, num_read)
            policy = self.policy.forward_flops(num_passes, lengths, num_response, num_read)
            return scorer + policy * trains_policy

        def scored(num_read: float) -> float:
            """The arithmetic of policy, reference, value model and reward model; other sources do not count."""
            lone = self.scorer.forward_flops(1, lengths, 0, num_read) * (not self.has_reward_model)
            return 2 * passes(1, num_read) - lone

        reused = self.policy.forward_flops(1, lengths, num_response, read.score) * read.reused
        return {
            "rollout": Work(self.policy.forward_flops(1, lengths, num_response, sum(lengths)), num_response),
            "score": Work(scored(read.score), read.score),
            # a backward pass is two forward passes
            "update": Work(3 * passes(read.num_epochs, read.update, trains_policy) - reused, read.update),
        }
