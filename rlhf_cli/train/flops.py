"""The floating-point operations of a PPO step, for the metrics under perf/."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_cli.data.token_batches import TokenSequence
from rlhf_cli.engine.roofline import Work
from rlhf_cli.models.model_size import ModelSize


@dataclass
class TokensRead:
    """The tokens that each model reads in a step, over all ranks. A packed prefix counts once."""

    score: float = 0.0
    update: float = 0.0
    num_epochs: float = 0.0  # of the update; fewer than ppo.num_epochs if it ends early
    reused: bool = False  # whether the update reuses scoring's forward pass of the policy


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a PPO run's models. The reference has the size of the policy."""

    policy: ModelSize
    scorer: ModelSize  # the value model, and the reward model if there is one
    has_reward_model: bool = True

    def work(self, sequences: list[TokenSequence], read: TokensRead, trains_policy: bool) -> dict[str, Work]:
        """Return the work of each phase. Only the reward model counts among reward sources."""
        lengths = [len(sequence) for sequence in sequences]
        num_response = sum(len(sequence.response_ids) for sequence in sequences)

        def policy(num_passes: float, num_read: float) -> float:
            return self.policy.forward_flops(num_passes, lengths, num_response, num_read)

        def scorer(num_passes: float, num_read: float) -> float:
            return self.scorer.forward_flops(num_passes, lengths, 0, num_read)

        score = 2 * policy(1, read.score) + (1 + self.has_reward_model) * scorer(1, read.score)
        update = scorer(read.num_epochs, read.update) + policy(read.num_epochs, read.update) * trains_policy
        return {
            "rollout": Work(policy(1, sum(lengths)), num_response),
            "score": Work(score, read.score),
            # a backward pass takes as much as two forward passes
            "update": Work(3 * update - policy(1, read.score) * read.reused, read.update),
        }
