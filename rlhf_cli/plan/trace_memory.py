"""What a forward or backward pass holds, found by running the model's own code on meta tensors.

Nothing is computed and no weights exist: only shapes pass through the layers, and every live
storage is counted. Two models of few layers are run and the rest is extrapolated, because memory
grows by the same amount with each layer. So the figures follow the code that trains (packing,
chunked log-probabilities, recomputation), for any transformers architecture that runs on meta
tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_cli.algo import logprobs
from rlhf_cli.algo.packing import Packing
from rlhf_cli.algo.sampling import draw
from rlhf_cli.config.errors import InputError
from rlhf_cli.models.heads import ResponseLM, TokenScorer
from rlhf_cli.plan.architecture import Architecture, meta_model
from rlhf_cli.plan.live_tensors import LiveTensors
from rlhf_cli.rollout.kv_cache import preallocated_cache
from rlhf_cli.system.text import one_line

LOGITS, ACTIVATIONS, CACHE = "logits", "activations", "KV cache"
_DEPTHS = (2, 3)  # layers of the traced models
_META = torch.device("meta")

Held = Counter[str]  # bytes that a pass holds besides weights and what existed before, by kind
Traces = dict[str, Held]  # by part of the pass
Run = Callable[[nn.Module, LiveTensors], Traces]


@dataclass(frozen=True)
class Passes:
    """The most that is alive in each part of a pass, without finished gradients of weights."""

    head: Held  # the forward pass, and the backward pass through the head to the last hidden states
    layers: Held  # the backward pass through the layers
    one_layer: Held  # the same, once the activations of only one layer are left
    embedding: Held  # the backward pass through the embedding
    kept: Held  # between the forward and the backward pass


@dataclass(frozen=True)
class Texts:
    """A micro-batch: rows of a prompt and a response of equal lengths, without common prefixes."""

    rows: int
    prompt: int
    response: int

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return self.prompt + self.response


@lru_cache(maxsize=1024)
def scoring(architecture: Architecture, texts: Texts) -> Held:
    """Return the most that a pass without gradients holds."""

    def run(module: nn.Module, live: LiveTensors) -> Traces:
        with torch.no_grad(), live:
            _output(architecture, module.eval(), texts)
        return {"peak": live.at_peak}

    return _extrapolated(architecture, run)(architecture.num_layers)["peak"]


@lru_cache(maxsize=1024)
def training(architecture: Architecture, texts: Texts) -> Passes:
    """Return what a pass with gradients holds."""

    def run(module: nn.Module, live: LiveTensors) -> Traces:
        assert isinstance(module, ResponseLM | TokenScorer)
        found: Traces = {}

        def finish(part: str) -> None:
            found[part] = live.at_peak
            live.reset_peak()

        def finish_at_gradient(tensor: Tensor, part: str) -> None:
            """Finish a part when the gradient of a tensor is known: all later layers are done."""
            if tensor.requires_grad:
                tensor.register_hook(lambda _: finish(part))  # type: ignore[no-untyped-call]

        is_policy = isinstance(module, ResponseLM)
        embeddings = module.model.get_input_embeddings()
        head: nn.Module = module.model.get_output_embeddings() if is_policy else module.model.score
        hooks = [one.register_post_accumulate_grad_hook(_drop_gradient) for one in module.parameters()]  # type: ignore[no-untyped-call]
        hooks.append(embeddings.register_forward_hook(lambda _, __, output: finish_at_gradient(output, "layers")))
        hooks.append(head.register_forward_pre_hook(lambda _, inputs: finish_at_gradient(inputs[0], "head")))
        module.train()
        with live:
            output = _output(architecture, module, texts)
            found["kept"] = +live.bytes
            output.sum().backward()  # type: ignore[no-untyped-call]
        finish("embedding")
        for hook in hooks:
            hook.remove()
        return found

    held = _extrapolated(architecture, run)
    full = held(architecture.num_layers)
    return Passes(full["head"], full["layers"], held(1)["layers"], full["embedding"], full["kept"])


@lru_cache(maxsize=1024)
def decoding(architecture: Architecture, texts: Texts, top_p: float) -> Held:
    """Return the most that sampling holds: the KV cache, and the prompts or a decoding step."""

    def run(module: nn.Module, live: LiveTensors) -> Traces:
        assert isinstance(module, ResponseLM)
        module.eval()
        with torch.no_grad(), live:
            cache = preallocated_cache(module.model, texts.length)
            ids = torch.zeros((texts.rows, texts.prompt), dtype=torch.long, device=_META)
            position = torch.zeros_like(ids)
            for _ in range(2):  # the prompts, then one token
                logits = module.next_logits(ids, None, position, cache)
                uniforms = torch.zeros(texts.rows, dtype=torch.float64, device=_META)
                ids = draw(logits, uniforms, 1.0, top_p)[:, None]
                position = position[:, -1:]
                del logits
        return {"peak": live.at_peak}

    return _extrapolated(architecture, run, cache_length=texts.length)(architecture.num_layers)["peak"]


def _output(architecture: Architecture, module: nn.Module, texts: Texts) -> Tensor:
    """Return log-probabilities plus entropies of response tokens [N], or scores [B, L]."""
    ids = torch.zeros((texts.rows, texts.length), dtype=torch.long, device=_META)
    packing = _packing(texts)
    if architecture.scores:
        scores: Tensor = module(ids, packing=packing)[0]
        return scores
    indices = torch.zeros(texts.rows * texts.response, dtype=torch.long, device=_META)
    logits = module(ids, rows=indices, columns=indices, packing=packing)
    token_logprobs, entropy = logprobs.token_logprobs_and_entropy(logits, indices, 1.0)
    return token_logprobs + entropy


def _packing(texts: Texts) -> Packing:
    """Return the packing of rows without common beginnings, on meta tensors."""
    ids, empty = (torch.empty(count, dtype=torch.long, device=_META) for count in (texts.rows * texts.length, 0))
    indices = torch.empty((texts.rows, texts.length), dtype=torch.long, device=_META)
    return Packing(ids=ids, positions=ids, indices=indices, first=ids, shared=empty, copies=())


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _extrapolated(architecture: Architecture, run: Run, cache_length: int | None = None) -> Callable[[int], Traces]:
    """Run the model at two depths; return a function that extrapolates to any number of layers."""
    depths = _DEPTHS if architecture.num_layers >= max(_DEPTHS) else (1, 2)
    low, high = (_traced(architecture, run, num_layers, cache_length) for num_layers in depths)

    def held(num_layers: int) -> Traces:
        def size(part: str, kind: str) -> int:
            per_layer = high[part][kind] - low[part][kind]
            return max(0, low[part][kind] + per_layer * (num_layers - depths[0]))

        return {part: Held({kind: size(part, kind) for kind in sorted({*low[part], *high[part]})}) for part in low}

    return held


def _traced(architecture: Architecture, run: Run, num_layers: int, cache_length: int | None) -> Traces:
    module = meta_model(architecture, num_layers)
    vocabulary = architecture.config.get_text_config().vocab_size

    def kind(tensor: Tensor) -> str:
        if cache_length is not None and tensor.dim() == 4 and tensor.shape[-2] == cache_length:
            return CACHE
        return LOGITS if tensor.dim() >= 2 and tensor.shape[-1] == vocabulary else ACTIVATIONS

    try:
        with _stand_ins():
            return run(module, _MetaTensors(kind))
    except Exception as error:  # from the model's own code
        name = type(module.model).__name__
        raise InputError(f"cannot plan {name}: it does not run on meta tensors: {one_line(error, 300)}") from error


class _MetaTensors(LiveTensors):  # type: ignore[no-untyped-call]
    """Answer True if the model reads a tensor's content, such as whether nothing is padded."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return True
        return super().__torch_dispatch__(function, types, args, kwargs)


class _FusedAttention(torch.autograd.Function):
    """Attention that keeps what fused kernels keep.

    That is queries, keys, values, the output, and a number per query and head. Nothing of [L, L] is
    held. Source: arXiv:2205.14135, section 3.1.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
    output: Tensor = _FusedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return output


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Replace attention and skip repeated chunks.

    torch has no fused attention on meta tensors. All chunks of logits in which log-probabilities
    are computed hold the same as the second one.
    """
    attention, chunks = nn.functional.scaled_dot_product_attention, logprobs._chunks
    nn.functional.scaled_dot_product_attention = _fused_attention
    logprobs._chunks = lambda *sizes: islice(chunks(*sizes), 2)
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention, logprobs._chunks = attention, chunks
