"""Wrappers around models, for the engines: logits of responses, scores of tokens, scores of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from rlhf_cli.algo.packing import Packing
from rlhf_cli.models.packed_forward import packed_pass, reads_packed


class ResponseLM(nn.Module):
    """A causal language model that computes only the logits that predict response tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._selected: tuple[Tensor, Tensor] | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._select)

    def forward(self, input_ids: Tensor, rows: Tensor, columns: Tensor, packing: Packing | None = None) -> Tensor:
        """Return the logits [N, V] at input_ids[rows, columns]; input_ids: [B, L]; rows, columns: [N].

        Padding is on the right, where no real token attends to it, so no mask is needed. The model
        applies its own head, to the selected hidden states only, because some models scale or cap
        the logits. packing: of the same sequences, for a model that reads packed sequences.
        """
        if packing is not None and reads_packed(self.model):
            places = packing.indices[rows, columns]
            with self._logits_at(torch.zeros_like(places), places):
                logits: Tensor = packed_pass(self.model, packing).logits
        else:
            with self._logits_at(rows, columns):
                logits = self.model(input_ids=input_ids, use_cache=False).logits
        return logits.squeeze(0)  # the gradient of logits[0] would be copied into zeros

    def next_logits(self, input_ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache) -> Tensor:
        """Return the logits [B, V] after the last of input_ids [B, P], and add these to `cache`.

        mask: [B, tokens in the cache + P], 1 on real tokens; None if all are. Padding is on the left.
        """
        rows = torch.arange(len(input_ids), device=input_ids.device)
        with self._logits_at(rows, torch.full_like(rows, input_ids.shape[1] - 1)):
            logits: Tensor = self.model(
                input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).logits
        return logits[0]

    @contextmanager
    def _logits_at(self, rows: Tensor, columns: Tensor) -> Iterator[None]:
        self._selected = rows, columns
        try:
            yield
        finally:
            self._selected = None

    def _select(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Reduce the hidden states [B, L, d] for the head to the selected ones, [1, N, d]."""
        return None if self._selected is None else (arguments[0][self._selected][None],)


class Float32Head(nn.Linear):
    """A bias-free linear head in float32; bfloat16 has too few digits for differences of scores."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head.in_features, head.out_features, bias=False, device="meta")
        self.weight = head.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Return float32 scores [..., out_features]; hidden: [..., in_features] of any float type."""
        return nn.functional.linear(hidden.float(), self.weight.float())


class TokenScorer(nn.Module):
    """A one-label sequence classifier that scores every token instead of only the last one."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, packing: Packing | None = None) -> tuple[Tensor, Tensor]:
        """Return float32 scores [B, L] and the hidden states [B, L, d] that the head reads.

        input_ids: [B, L], with padding on the right, where no real token attends to it, so no mask is
        needed. packing: of the same sequences, for a model that reads packed sequences.
        """
        backbone = self.model.base_model
        if packing is not None and reads_packed(self.model):
            packed: Tensor = packed_pass(backbone, packing).last_hidden_state.squeeze(0)
            return packing.unpack(self.model.score(packed)).squeeze(-1), packing.unpack(packed)
        hidden: Tensor = backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.model.score(hidden).squeeze(-1), hidden


class PairScorer(nn.Module):
    """A one-label classifier with an encoder, which reads prompt and response as a pair of texts."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, packing: Packing | None = None, **inputs: Tensor) -> tuple[Tensor]:
        """Return the float32 scores [B, 1] of pairs; inputs: the tokenizer's other outputs, [B, L] each.

        packing: ignored, because every token attends to all others.
        """
        scores: Tensor = self.model(input_ids=input_ids, **inputs).logits.float()
        return (scores,)
