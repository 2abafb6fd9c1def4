"""Scores from a frozen reward model."""

import torch
from torch import Tensor

from rlhf_cli.data.token_batches import EndTokens, TokenSequence, collate
from rlhf_cli.engine.base import FrozenEngine


class RewardModel:
    """A one-label classifier over prompt and response, sharing the policy's tokenizer.

    end_id ends every answer it was trained on (`Renderer.end_id`); ends: all tokens that end a response of the policy.
    """

    def __init__(self, engine: FrozenEngine, end_id: int, ends: EndTokens, device: torch.device) -> None:
        self.engine = engine
        self.end_id = end_id
        self.ends = ends
        self.device = device

    def score(self, sequences: list[TokenSequence]) -> Tensor:
        """Return one score a sequence, float32 [B], read at its end token; all ranks together.

        A response that was cut off is given one to be scored with, and one that ended in another end token has it
        replaced: in training the model saw every answer end in `end_id`, and what it says at others means nothing.
        """
        batch = collate([self._closed(sequence) for sequence in sequences], self.ends.pad_id, self.device)
        per_token, _ = self.engine(batch.input_ids, packing=batch.packing)
        return batch.at_last_token(per_token)

    def _closed(self, sequence: TokenSequence) -> TokenSequence:
        text = sequence.response_ids
        if self.ends.ended(sequence):
            text = text[:-1]
        return TokenSequence(sequence.prompt_ids, (*text, self.end_id))
