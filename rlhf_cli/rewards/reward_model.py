"""Scores from the run's frozen reward model, which shares the policy's tokenizer."""

import torch
from torch import Tensor

from rlhf_cli.data.token_batches import EndTokens, TokenSequence, collate
from rlhf_cli.engine.base import FrozenEngine


class RewardModel:
    """A one-label classifier over the tokens of prompt and response.

    end_id: the end token of every response in its training data (`Renderer.end_id`).
    ends: all tokens that end a response of the policy.
    """

    def __init__(self, engine: FrozenEngine, end_id: int, ends: EndTokens, device: torch.device) -> None:
        self.engine = engine
        self.end_id = end_id
        self.ends = ends
        self.device = device

    def score(self, sequences: list[TokenSequence]) -> Tensor:
        """Return the score of each sequence, float32 [B], read at its end token.

        All ranks call it together. Every response is closed with `end_id`, even if it was cut off
        or ended with another end token: the model learned scores at `end_id` alone, and its output
        at other tokens has no meaning.
        """
        batch = collate([self._closed(sequence) for sequence in sequences], self.ends.pad_id, self.device)
        per_token, _ = self.engine(batch.input_ids, packing=batch.packing)
        return batch.at_last_token(per_token)

    def _closed(self, sequence: TokenSequence) -> TokenSequence:
        text = sequence.response_ids
        if self.ends.ended(sequence):
            text = text[:-1]
        return TokenSequence(sequence.prompt_ids, (*text, self.end_id))
