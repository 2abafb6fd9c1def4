"""What the engines wrap: a causal model that returns response logits, a classifier that scores every token."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel


class ResponseLM(nn.Module):
    """A causal language model whose forward returns the logits that predict the response tokens, and no others."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, num_response: int) -> Tensor:
        """Return the logits [B, T, V] that predict the last T = `num_response` tokens of input_ids [B, L]."""
        logits: Tensor = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=num_response + 1,
            use_cache=False,
        ).logits
        return logits[:, :-1]


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

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 scores [B, L] and the hidden states [B, L, d] that the head read; input_ids: [B, L]."""
        hidden: Tensor = self.model.base_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        return self.model.score(hidden).squeeze(-1), hidden
