"""What the engines wrap: a causal model that returns response logits, a classifier that scores every token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from rlhf_cli.algo.packing import Packing
from rlhf_cli.models.packed_forward import packed_pass, reads_packed


class ResponseLM(nn.Module):
    """A causal language model whose forward returns the logits that predict the response tokens, and no others."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._wanted: tuple[Tensor, Tensor] | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._pick)

    def forward(self, input_ids: Tensor, rows: Tensor, columns: Tensor, packing: Packing | None = None) -> Tensor:
        """Return the logits [N, V] at N places of input_ids [B, L]; rows, columns: [N].

        Padding stands on the right, where no real token looks, so that no mask is needed. The model's own head is
        told which hidden states to read, rather than called apart, because some models scale or cap its logits.
        packing: of the same texts; a model that reads packed texts then sees each token of theirs once.
        """
        if packing is not None and reads_packed(self.model):
            places = packing.places[rows, columns]
            with self._reading(torch.zeros_like(places), places):
                logits: Tensor = packed_pass(self.model, packing).logits
        else:
            with self._reading(rows, columns):
                logits = self.model(input_ids=input_ids, use_cache=False).logits
        return logits.squeeze(0)  # logits[0] would copy its gradient into zeros

    def next_logits(self, input_ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache) -> Tensor:
        """Return the logits [B, V] behind the last of input_ids [B, P], which `cache` takes up; padding: on the left.

        mask: [B, tokens in the cache + P], 1 on real ones; None where all are.
        """
        rows = torch.arange(len(input_ids), device=input_ids.device)
        with self._reading(rows, torch.full_like(rows, input_ids.shape[1] - 1)):
            logits: Tensor = self.model(
                input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).logits
        return logits[0]

    @contextmanager
    def _reading(self, rows: Tensor, columns: Tensor) -> Iterator[None]:
        """Let the head read hidden states at these places alone."""
        self._wanted = rows, columns
        try:
            yield
        finally:
            self._wanted = None

    def _pick(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Leave of the hidden states [B, L, d] that the head is given [1, N, d]."""
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

    def forward(self, input_ids: Tensor, packing: Packing | None = None) -> tuple[Tensor, Tensor]:
        """Return float32 scores [B, L] and the hidden states [B, L, d] that the head read.

        input_ids: [B, L], padded on the right, where no real token looks, so that no mask is needed. packing: of the
        same texts; a model that reads packed texts then sees each token of theirs once.
        """
        backbone = self.model.base_model
        if packing is not None and reads_packed(self.model):
            packed: Tensor = packed_pass(backbone, packing).last_hidden_state.squeeze(0)
            return packing.spread(self.model.score(packed)).squeeze(-1), packing.spread(packed)
        hidden: Tensor = backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.model.score(hidden).squeeze(-1), hidden


class PairScorer(nn.Module):
    """A one-label classifier with an encoder, which reads a pair of texts as a whole."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, packing: Packing | None = None, **inputs: Tensor) -> tuple[Tensor]:
        """Return the float32 score of each text, [B, 1], alone; inputs: what else its tokenizer gives, [B, L] each.

        packing: not of use here, where every token looks at all others.
        """
        scores: Tensor = self.model(input_ids=input_ids, **inputs).logits.float()
        return (scores,)
