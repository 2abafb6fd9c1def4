"""Decoding on a CPU: layers of Llama and similar models with fewer operations per token.

A decoding step consists of about a thousand operations of a few microseconds, with Python between
them. Here query, key and value are one product, both rotations are one, and no modules are called:
a sixth of the operations less, and a quarter of the views.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Cache, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from rlhf_cli.models.cpu import attention as cpu_attention
from rlhf_cli.models.cpu.linear import product, reordered_weights

_KINDS = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer)  # differ only in biases and windows

Rotation = tuple[Tensor, Tensor]  # cosines and sines [B, 1, d]


@contextmanager
def cpu_decoding(model: PreTrainedModel, num_rows: int) -> Iterator[None]:
    """Let a model read one token per row faster; num_rows: rows of most steps.

    Inside, weights must not change and gradients are not available.
    """
    step = _StepTensors()
    layers = [layer for layer in model.modules() if type(layer) in _KINDS and _is_supported(layer)]
    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _DecodingLayer(layer, num_rows, step)
        with reordered_weights(model, num_rows, [linear for layer in layers for linear in layer.modules()]):
            yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward


def _is_supported(layer: Any) -> bool:
    """Return whether a layer computes what `_DecodingLayer` does."""
    attention, mlp = layer.self_attn, layer.mlp
    config = attention.config
    linear = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return (
        config._attn_implementation.endswith(cpu_attention.NAME)
        and getattr(attention, "sliding_window", getattr(config, "sliding_window", None)) is None
        and all(type(one) is nn.Linear for one in (*linear, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    )


class _StepTensors:
    """Tensors shared by all layers in a step; the first layer computes them."""

    def __init__(self) -> None:
        self._given: Rotation | None = None
        self._rotation: Rotation | None = None
        self._mask: Tensor | None = None

    def rotation(self, given: Rotation) -> Rotation:
        """Return the rotation with signed sines, for rolled heads; given: the same for all layers of a step."""
        if self._rotation is None or given is not self._given:
            cosines, sines = given
            left, right = sines.chunk(2, dim=-1)
            self._given, self._rotation = given, (cosines, torch.cat([-left, right], dim=-1))
            self._mask = None
        return self._rotation

    def mask(self, given: Tensor | None, num_held: int, num_keys: int) -> Tensor:
        """Return the mask [B or 1, 1, 1, num_keys]: `given`, all if None, for held keys, false for the rest."""
        if self._mask is None:
            held = torch.ones((1, 1, 1, num_held), dtype=torch.bool) if given is None else given
            self._mask = pad(held, (0, num_keys - num_held))
        return self._mask


class _DecodingLayer:
    """Forward pass of a layer for one token per row."""

    def __init__(self, layer: Any, num_rows: int, step: _StepTensors) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.own = layer.forward
        self.step = step
        self.index, self.width, self.scale = attention.layer_idx, attention.head_dim, attention.scaling
        self.num_queries = attention.q_proj.out_features // self.width
        self.num_rotated = self.num_queries + attention.k_proj.out_features // self.width
        self.norms = layer.input_layernorm.forward, layer.post_attention_layernorm.forward
        self.heads = product([attention.q_proj, attention.k_proj, attention.v_proj], num_rows)
        self.output = product([attention.o_proj], num_rows)
        self.gate, self.up, self.down = (
            product([one], num_rows) for one in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        self.activation = mlp.act_fn.forward

    def __call__(self, hidden_states: Tensor, **given: Any) -> Tensor:
        """Replace the layer's `forward`, which still processes prompts; hidden_states: [B, L, d]."""
        cache: Cache | None = given.get("past_key_values")
        if hidden_states.shape[1] != 1 or cache is None:
            own: Tensor = self.own(hidden_states, **given)
            return own
        hidden = hidden_states[:, 0]
        heads = self.heads(self.norms[0](hidden)).view(len(hidden), -1, self.width)
        cosines, sines = self.step.rotation(given["position_embeddings"])
        rotated = heads[:, : self.num_rotated]
        rotated = rotated * cosines + rotated.roll(self.width // 2, dims=-1) * sines
        cache.update(rotated[:, self.num_queries :, None], heads[:, self.num_rotated :, None], self.index)
        held: Any = cache.layers[self.index]  # its keys are contiguous; the views that `update` returns are not
        mask = self.step.mask(given["attention_mask"], held.get_seq_length(), held.keys.shape[2])
        query = rotated[:, : self.num_queries, None]
        mixed = cpu_attention.attend_one_token(query, held.keys, held.values, mask, self.scale)
        hidden = hidden + self.output(mixed.reshape(len(hidden), -1))
        normed = self.norms[1](hidden)
        return (hidden + self.down(self.activation(self.gate(normed)) * self.up(normed)))[:, None]
