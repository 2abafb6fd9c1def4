"""Count the arithmetic of a model's forward pass."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelSize:
    """Sizes of the matrix products of a transformer; a weight takes one multiply and one add per token."""

    body: int  # weights in matrix products, except for the head over the vocabulary
    head: int  # V * d; 0 for a model without such a head
    layers: int
    width: int  # of all attention heads of a layer together

    @staticmethod
    def of(model: PreTrainedModel) -> ModelSize:
        """Measure a model before it is sharded."""
        head = model.get_output_embeddings()
        matrices = [
            part.weight.numel()
            for part in model.modules()
            if part is not head and not isinstance(part, nn.Embedding) and getattr(part, "weight", None) is not None
            if part.weight.dim() == 2
        ]
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        width = (getattr(config, "head_dim", None) or config.hidden_size // heads) * heads
        return ModelSize(sum(matrices), 0 if head is None else head.weight.numel(), config.num_hidden_layers, width)

    def forward_flops(self, num_passes: float, lengths: Collection[int], num_outputs: int, num_read: float) -> float:
        """Return the floating-point operations of forward passes over sequences.

        lengths: tokens of each sequence. num_outputs: logits [V] computed per pass. num_read: tokens
        processed in all passes together; packing processes a shared prefix once. Attention takes two
        products of L * L / 2 * width per layer and sequence. A backward pass takes twice as much.
        """
        attention = 2 * self.layers * self.width * sum(length**2 for length in lengths)
        return 2 * self.body * num_read + num_passes * (2 * self.head * num_outputs + attention)
