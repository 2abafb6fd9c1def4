"""Scores from a frozen reward model."""

from torch import Tensor

from rlhf_cli.data.tokens import TokenBatch
from rlhf_cli.engine.zero import FrozenEngine


class RewardModel:
    """A one-label classifier over prompt and response, sharing the policy's tokenizer."""

    def __init__(self, engine: FrozenEngine) -> None:
        self.engine = engine

    def score(self, batch: TokenBatch) -> Tensor:
        """Return the score at the last real token of each row, float32 [B]; all ranks together."""
        per_token, _ = self.engine(**batch.model_inputs())
        return batch.at_last_token(per_token)
