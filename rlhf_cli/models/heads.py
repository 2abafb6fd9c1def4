"""What the engines wrap: a causal model that returns response logits, a classifier that scores every token."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel


class ResponseLM(nn.Module):
    """A causal language model whose forward returns the logits that predict the response tokens, and no others."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._wanted: tuple[Tensor, Tensor] | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._pick)

    def forward(self, input_ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the logits [N, V] at N places of input_ids [B, L]; rows, columns: [N].

        Padding stands on the right, where no real token looks, so that no mask is needed. The model's own head is
        told which hidden states to read, rather than called apart, because some models scale or cap its logits.
        """
        self._wanted = rows, columns
        try:
            logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        finally:
            self._wanted = None
        return logits[0]

    def _pick(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Leave of the hidden states [B, L, d] that the head is given [1, N, d]; all of them while generating."""
        return None if self._wanted is None else (arguments[0][self._wanted][None],)


class Float32Head(nn.Linear):
    """A bias-free linear head that multiplies in float32: a bfloat16 score has three digits, too few for a margin."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")
        self.weight = head.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Return float32 scores [..., out_features]; hidden: [..., in_features] of any float type."""
        return nn.functional.linear(hidden.float(), self.weight.float())


class TokenScorer(nn.Module):
    """A one-label sequence classifier whose forward applies its head to every token, not to the last one alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 scores [B, L] and the hidden states [B, L, d] that the head read.

        input_ids: [B, L], padded on the right, where no real token looks, so that no mask is needed.
        """
        hidden: Tensor = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.model.score(hidden).squeeze(-1), hidden
