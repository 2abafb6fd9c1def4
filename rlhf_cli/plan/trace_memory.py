"""What a forward or a backward pass holds, found by running the model's own code on meta tensors.

Nothing is computed and no weight exists: only shapes go through the layers, and every storage that would be alive is
counted. A model of few layers is run at two depths, and the rest follows: what is alive grows by the same amount a
layer. So the figures follow the code that trains (packing, chunked log-probabilities, recomputation) and hold for any
architecture of transformers that runs on meta tensors.
"""

from __future__ import annotations

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
_DEPTHS = (2, 3)  # layers of the models that are run
_META = torch.device("meta")


@dataclass(frozen=True)
class Held:
    """Bytes that a pass holds, beside weights and what was there before; by kind."""

    kinds: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(size for _, size in self.kinds)

    def towards(self, other: Held, share: float) -> Held:
        """Return what is held when a share of the way to another time is gone."""
        theirs = dict(other.kinds)
        return Held(tuple((kind, round(size + share * (theirs.get(kind, 0) - size))) for kind, size in self.kinds))


@dataclass(frozen=True)
class Passes:
    """The most that is alive in the parts of a pass with gradients, but for the gradients of weights that are done."""

    head: Held  # forward, and backward through the head, as far as the last hidden states
    layers: Held  # backward through the layers
    one_layer: Held  # there, when the activations of one layer are left
    embedding: Held  # backward through the embedding
    kept: Held  # between forward and backward


@dataclass(frozen=True)
class Texts:
    """A micro-batch: rows of a prompt and a response each, all of one length; nothing of them is alike."""

    rows: int
    prompt: int
    response: int

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.prompt + self.response


@lru_cache(maxsize=1024)
def scoring(architecture: Architecture, texts: Texts) -> Held:
    """Return the most that a pass without gradients holds."""

    def run(module: nn.Module, live: LiveTensors) -> dict[str, dict[str, int]]:
        with torch.no_grad(), live:
            _output(architecture, module.eval(), texts)
        return {"peak": live.at_peak}

    return _extrapolated(architecture, run, None, architecture.num_layers)[0]["peak"]


@lru_cache(maxsize=1024)
def training(architecture: Architecture, texts: Texts) -> Passes:
    """Return what a pass with gradients holds."""

    def run(module: nn.Module, live: LiveTensors) -> dict[str, dict[str, int]]:
        assert isinstance(module, ResponseLM | TokenScorer)
        found: dict[str, dict[str, int]] = {}

        def done(part: str) -> None:
            found[part] = live.at_peak
            live.reset_peak()

        embeddings, head = module.model.get_input_embeddings(), _head(module)
        hooks = [one.register_post_accumulate_grad_hook(_drop) for one in module.parameters()]  # type: ignore[no-untyped-call]
        hooks.append(embeddings.register_forward_hook(lambda _, __, output: _when_known(output, done, "layers")))
        hooks.append(head.register_forward_pre_hook(lambda _, inputs: _when_known(inputs[0], done, "head")))
        module.train()
        with live:
            output = _output(architecture, module, texts)
            found["kept"] = {kind: size for kind, size in live.bytes.items() if size}
            output.sum().backward()  # type: ignore[no-untyped-call]
        done("embedding")
        for hook in hooks:
            hook.remove()
        return found

    at, at_one = _extrapolated(architecture, run, None, architecture.num_layers, 1)
    return Passes(at["head"], at["layers"], at_one["layers"], at["embedding"], at["kept"])


def _head(module: ResponseLM | TokenScorer) -> nn.Module:
    head: nn.Module = module.model.get_output_embeddings() if isinstance(module, ResponseLM) else module.model.score
    return head


def _when_known(tensor: Tensor, done: Callable[[str], None], part: str) -> None:
    """Call done(part) once the backward pass knows the gradient of a tensor: what follows from it is behind."""
    if tensor.requires_grad:
        tensor.register_hook(lambda _: done(part))  # type: ignore[no-untyped-call]


@lru_cache(maxsize=1024)
def decoding(architecture: Architecture, texts: Texts, top_p: float) -> Held:
    """Return the most that generating responses holds: the cache, the prompts' pass, a step's logits and draw."""
    room = texts.length

    def run(module: nn.Module, live: LiveTensors) -> dict[str, dict[str, int]]:
        assert isinstance(module, ResponseLM)
        module.eval()
        with torch.no_grad(), live:
            cache = preallocated_cache(module.model, room)
            ids = torch.zeros((texts.rows, texts.prompt), dtype=torch.long, device=_META)
            position = torch.zeros_like(ids)
            for _ in range(2):  # the prompts, then one token
                logits = module.next_logits(ids, None, position, cache)
                uniforms = torch.zeros(texts.rows, dtype=torch.float64, device=_META)
                ids = draw(logits, uniforms, 1.0, top_p)[:, None]
                position = position[:, -1:]
                del logits
        return {"peak": live.at_peak}

    return _extrapolated(architecture, run, room, architecture.num_layers)[0]["peak"]


def _output(architecture: Architecture, module: nn.Module, texts: Texts) -> Tensor:
    """Run the forward pass; return log-probabilities [N] of the response tokens, or scores [B, L]."""
    ids = torch.zeros((texts.rows, texts.length), dtype=torch.long, device=_META)
    packing = _packing(texts)
    if architecture.scores:
        scores: Tensor = module(ids, packing=packing)[0]
        return scores
    places = torch.zeros(texts.rows * texts.response, dtype=torch.long, device=_META)
    logits = module(ids, rows=places, columns=places, packing=packing)
    of_tokens, entropy = logprobs.token_logprobs_and_entropy(logits, places, 1.0)
    return of_tokens + entropy


def _packing(texts: Texts) -> Packing:
    """The packing of rows that have nothing in common, on meta tensors."""
    count = texts.rows * texts.length
    ids, nothing = torch.empty(count, dtype=torch.long, device=_META), torch.empty(0, dtype=torch.long, device=_META)
    places = torch.empty((texts.rows, texts.length), dtype=torch.long, device=_META)
    return Packing(ids=ids, positions=ids, places=places, first=ids, shared=nothing, copies=())


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


Run = Callable[[nn.Module, LiveTensors], dict[str, dict[str, int]]]


def _extrapolated(architecture: Architecture, run: Run, room: int | None, *wanted: int) -> list[dict[str, Held]]:
    """Run a model at two depths; return what it holds at each of the depths that are wanted."""
    depths = _DEPTHS if architecture.num_layers >= max(_DEPTHS) else (1, 2)
    low, high = (_traced(architecture, run, num_layers, room) for num_layers in depths)

    def at(depth: int, name: str) -> Held:
        sizes = []
        for kind in sorted(low[name].keys() | high[name].keys()):
            first, second = low[name].get(kind, 0), high[name].get(kind, 0)
            sizes.append((kind, max(0, first + (second - first) * (depth - depths[0]))))
        return Held(tuple(sizes))

    return [{name: at(depth, name) for name in low} for depth in wanted]


def _traced(architecture: Architecture, run: Run, num_layers: int, room: int | None) -> dict[str, dict[str, int]]:
    module = meta_model(architecture, num_layers)
    vocabulary = architecture.config.get_text_config().vocab_size

    def kind(tensor: Tensor) -> str:
        if room is not None and tensor.dim() == 4 and tensor.shape[-2] == room:
            return CACHE
        return LOGITS if tensor.dim() >= 2 and tensor.shape[-1] == vocabulary else ACTIVATIONS

    live = _Traced(kind)
    try:
        with _shortened():
            return run(module, live)
    except Exception as error:  # from the model's own code
        name = type(module.model).__name__
        raise InputError(f"cannot plan {name}: it does not run on meta tensors: {one_line(error, 300)}") from error


class _Traced(LiveTensors):  # type: ignore[no-untyped-call]
    """Says yes where the model asks a tensor: whether texts are whole, or nothing is padded."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return True
        return super().__torch_dispatch__(function, types, args, kwargs)


class _Attention(torch.autograd.Function):
    """Attention that keeps what fused kernels keep: queries, keys, values, the output and a number a query and head.

    arXiv:2205.14135, sec. 3.1; nothing of [L, L] is ever held.
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


def _fused(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
    output: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return output


@contextmanager
def _shortened() -> Iterator[None]:
    """Put stand-ins where the code would hold too much or go on for too long.

    torch has no fused attention for meta tensors; of the chunks of logits that log-probabilities are computed in, all
    hold what the second one does.
    """
    own, chunks = nn.functional.scaled_dot_product_attention, logprobs._chunks
    nn.functional.scaled_dot_product_attention = _fused
    logprobs._chunks = lambda *sizes: islice(chunks(*sizes), 2)
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention, logprobs._chunks = own, chunks
