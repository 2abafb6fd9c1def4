"""Scores from a frozen reward model."""

import torch
from torch import Tensor

from rlhf_cli.data.tokens import Sequence, collate
from rlhf_cli.engine.zero import FrozenEngine


class RewardModel:
    """A one-label classifier over prompt and response, sharing the policy's tokenizer.

    eos_id ends every answer it was trained on; end_ids are all tokens that end a response of the policy.
    """

    def __init__(
        self, engine: FrozenEngine, eos_id: int, end_ids: frozenset[int], pad_id: int, device: torch.device
    ) -> None:
        self.engine = engine
        self.eos_id = eos_id
        self.end_ids = end_ids
        self.pad_id = pad_id
        self.device = device

    def score(self, sequences: list[Sequence]) -> Tensor:
        """Return one score a sequence, float32 [B], read at its end token; all ranks together.

        A response that was cut off is given an EOS to be scored with, and one that ended in another end token has it
        replaced: in training the model saw every answer end in EOS, and what it says at other tokens means nothing.
        """
        batch = collate([self._closed(sequence) for sequence in sequences], self.pad_id, self.device)
        per_token, _ = self.engine(**batch.model_inputs())
        return batch.at_last_token(per_token)

    def _closed(self, sequence: Sequence) -> Sequence:
        text = sequence.response_ids
        if text[-1] in self.end_ids:
            text = text[:-1]
        return Sequence(sequence.prompt_ids, (*text, self.eos_id))
