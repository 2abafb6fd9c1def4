"""Decoding on a CPU: the layers of Llama and its kin read one token a row with less around their products.

Such a step is a thousand operations of some microseconds and Python between them. Here query, key and value are one
product, both rotations one, and no modules are called: a sixth of the operations less, and a quarter of the views.
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
from rlhf_cli.models.cpu.linear import laid_out, product

_KINDS = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer)  # the same but for biases and windows

Rotation = tuple[Tensor, Tensor]  # cosines and sines [B, 1, d]


@contextmanager
def decoding(model: PreTrainedModel, num_rows: int) -> Iterator[None]:
    """Let a model read one token a row faster; num_rows: how many most steps have.

    The body must not change weights, nor need gradients. Elsewhere than on a CPU nothing changes.
    """
    step = _Step()
    layers = [layer for layer in model.modules() if type(layer) in _KINDS and _is_plain(layer)]
    before = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _Layer(layer, num_rows, step)
        with laid_out(model, num_rows, [linear for layer in layers for linear in layer.modules()]):
            yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward


def _is_plain(layer: Any) -> bool:
    """Say whether a layer computes what `_Layer` does."""
    attention, mlp = layer.self_attn, layer.mlp
    config = attention.config
    linear = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return (
        config._attn_implementation.endswith(cpu_attention.NAME)
        and getattr(attention, "sliding_window", getattr(config, "sliding_window", None)) is None
        and all(type(one) is nn.Linear for one in (*linear, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    )


class _Step:
    """What the layers share in a step, made by the first of them."""

    def __init__(self) -> None:
        self._given: Rotation | None = None
        self._rotation: Rotation | None = None
        self._seen: Tensor | None = None

    def rotation(self, given: Rotation) -> Rotation:
        """Return the sines with the sign that a rolled head takes; given: what the model gives all layers of a step."""
        if self._rotation is None or given is not self._given:
            cosines, sines = given
            left, right = sines.chunk(2, dim=-1)
            self._given, self._rotation = given, (cosines, torch.cat([-left, right], dim=-1))
            self._seen = None
        return self._rotation

    def seen(self, mask: Tensor | None, num_held: int, num_keys: int) -> Tensor:
        """Return which keys are seen, [B or 1, 1, 1, keys], of which some are held; mask: of those, None for all."""
        if self._seen is None:
            held = torch.ones((1, 1, 1, num_held), dtype=torch.bool) if mask is None else mask
            self._seen = pad(held, (0, num_keys - num_held))
        return self._seen


class _Layer:
    """The forward pass of a layer."""

    def __init__(self, layer: Any, num_rows: int, step: _Step) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.own = layer.forward
        self.step = step
        self.index, self.width, self.scale = attention.layer_idx, attention.head_dim, attention.scaling
        self.num_queries = attention.q_proj.out_features // self.width
        self.num_turned = self.num_queries + attention.k_proj.out_features // self.width
        self.norms = layer.input_layernorm.forward, layer.post_attention_layernorm.forward
        self.heads = product([attention.q_proj, attention.k_proj, attention.v_proj], num_rows)
        self.output = product([attention.o_proj], num_rows)
        self.gate, self.up, self.down = (
            product([one], num_rows) for one in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        self.activation = mlp.act_fn.forward

    def __call__(self, hidden_states: Tensor, **given: Any) -> Tensor:
        """Serve as the layer's forward pass, hidden_states: [B, L, d]; with several tokens a row it is its own."""
        cache: Cache | None = given.get("past_key_values")
        if hidden_states.shape[1] != 1 or cache is None:
            own: Tensor = self.own(hidden_states, **given)
            return own
        hidden = hidden_states[:, 0]
        heads = self.heads(self.norms[0](hidden)).view(len(hidden), -1, self.width)
        cosines, sines = self.step.rotation(given["position_embeddings"])
        turned = heads[:, : self.num_turned]
        turned = turned * cosines + turned.roll(self.width // 2, dims=-1) * sines
        cache.update(turned[:, self.num_queries :, None], heads[:, self.num_turned :, None], self.index)
        held: Any = cache.layers[self.index]  # its keys are dense, as the views of them that `update` returns are not
        seen = self.step.seen(given["attention_mask"], held.get_seq_length(), held.keys.shape[2])
        query = turned[:, : self.num_queries, None]
        mixed = cpu_attention.one_token(query, held.keys, held.values, seen, self.scale)
        hidden = hidden + self.output(mixed.reshape(len(hidden), -1))
        normed = self.norms[1](hidden)
        return (hidden + self.down(self.activation(self.gate(normed)) * self.up(normed)))[:, None]
