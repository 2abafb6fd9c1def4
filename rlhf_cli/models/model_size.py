"""How much arithmetic a model's forward pass takes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelSize:
    """What a transformer multiplies with. Counted in weights, each of which is one multiplication and one addition."""

    body: int  # weights in matrix products, without those of the head over the vocabulary
    head: int  # V * d; 0 for a model that scores
    layers: int
    width: int  # of all attention heads of a layer together

    @staticmethod
    def of(model: PreTrainedModel) -> ModelSize:
        """Measure a model that nobody has sharded yet."""
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
        """Return the floating-point operations that so many passes over texts of such lengths cannot do without.

        num_outputs: places at which the head over the vocabulary is asked; num_read: tokens that are read in all passes
        together, fewer than the texts have where those that texts begin with alike are read once. Attention: two
        products of L * L / 2 * width a layer and text. A backward pass takes twice as many.
        """
        attention = 2 * self.layers * self.width * sum(length**2 for length in lengths)
        return 2 * self.body * num_read + num_passes * (2 * self.head * num_outputs + attention)
