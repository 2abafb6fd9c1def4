"""What the moments of both kinds of run are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedConfig

from rlhf_cli.config.plan_options import num_bytes
from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.config.sections import ModelConfig
from rlhf_cli.config.zero_settings import ZeroSettings
from rlhf_cli.engine.roofline import CPU_SIDE, GPU_SIDE
from rlhf_cli.engine.shards import FILE_BYTES
from rlhf_cli.models.heads import ResponseLM
from rlhf_cli.models.kernels import decoding_copies_weights
from rlhf_cli.models.load_models import load_config, torch_dtype
from rlhf_cli.plan.architecture import Architecture, meta_model
from rlhf_cli.plan.engine_memory import Engine, Sharding
from rlhf_cli.plan.memory_map import Item, MemoryMap, Moment, Place, total
from rlhf_cli.plan.trace_memory import Held, Passes

Config = TrainPPOConfig | TrainRMConfig


@dataclass(frozen=True)
class Lengths:
    """Tokens of the texts that a run reads; by default what its options allow."""

    shortest_prompt: int  # of the tokens that a packed pass reads for it alone: without those that all begin with
    longest_prompt: int
    longest_text: int  # of a pretraining block, or of an answer with its prompt
    answers: int = 2  # to a prompt, in preference data

    @staticmethod
    def allowed(config: Config) -> Lengths:
        """Return the longest that the options let through; the shortest prompt is a token."""
        if isinstance(config, TrainPPOConfig):
            block = config.pretrain.max_tokens if config.pretrain.path is not None else 0
            return Lengths(1, config.data.max_prompt_tokens, block)
        return Lengths(1, 1, config.data.max_tokens)


_SHAPES: dict[str, PreTrainedConfig] = {}  # reading the config out of a GGUF file takes seconds


def shape_of(model: ModelConfig, key: str) -> PreTrainedConfig:
    source = repr((model.path, model.from_config, model.tokenizer, model.revision, model.trust_remote_code))
    if source not in _SHAPES:
        _SHAPES[source] = load_config(model, key)
    return _SHAPES[source]


class Run:
    """What the moments of both kinds of run are made from."""

    def __init__(self, config: Config, place: Place, lengths: Lengths) -> None:
        self.place = place
        self.lengths = lengths
        self.sharding = Sharding(place.num_ranks, ZeroSettings.of(config.deepspeed), place.on_gpu)
        self.context = num_bytes(config.plan.gpu_overhead, "plan.gpu_overhead") if place.on_gpu else 0

    def engine(self, role: str, model: ModelConfig, shape: PreTrainedConfig, scores: bool) -> Engine:
        """Return a frozen engine; `replace` it with an optimizer where it is trained.

        Attention is planned as fused, whatever it is called, unless it is the eager one.
        """
        eager = model.attn_implementation == "eager"
        packing = model.packing and model.attn_implementation in (None, "sdpa")
        architecture = Architecture.of(shape, scores, torch_dtype(model), packing, checkpointing=False, eager=eager)
        return Engine(role, architecture, self.sharding)

    def mapped(self, moments: list[Moment], trained: tuple[Engine, ...], num_checkpoints: int) -> MemoryMap:
        """Return the map of a run with these moments; num_checkpoints: on the disk at a time at most."""
        saved, exported = (sum(getattr(one, name) for one in trained) for name in ("saved", "exported"))
        return MemoryMap(tuple(moments), self.place, self.context, saved, num_checkpoints, exported)

    def written(self, saved: int) -> int:
        """Bytes of host memory that writing a checkpoint takes: of a file, and of what a GPU sends for it."""
        return min(FILE_BYTES, saved // self.place.num_ranks) * (1 + self.place.on_gpu)

    def loading(self, order: list[tuple[Engine, bool]], together: int) -> Iterator[Moment]:
        """Models as they come: each is loaded whole into host memory, moved to the device whole, and sharded there.

        order: engines in the order in which they are made, each with whether it is trained; together: how many of the
        first stand in host memory before the first is moved.
        """
        done: list[Item] = []
        host: list[Item] = []
        for number, (engine, trained) in enumerate(order):
            waiting = [one for one, _ in order[number + 1 : together]]
            here = [Item(one.role, "whole weights, loaded", one.whole) for one in waiting]
            coming = Item(engine.role, "whole weights, loaded", engine.whole)
            moving = Item(engine.role, "whole weights, moved before they are sharded", engine.whole)
            if number == 0 or number >= together:
                yield Moment("load", f"{engine.role} loaded", tuple(done), (*host, coming, *here))
            if engine.sharding.uses_zero:
                yield Moment("load", f"{engine.role} moved", (*done, moving), (*host, *here))
            later = _LATER if engine.sharding.uses_zero else ()
            states = [item for item in engine.resident() if item.what not in later]
            if trained:
                yield Moment("load", f"{engine.role} prepared", (*done, *engine.start()), (*host, *here))
            done += states
            host += [item for item in engine.on_host() if item.what not in later]
        each = order[0][0].architecture.dtype.itemsize
        matrices = Item(
            "", "matrices to measure products with", 3 * each * (GPU_SIDE if self.place.on_gpu else CPU_SIDE) ** 2
        )
        yield Moment("load", "matrix products measured", (*done, matrices), tuple(host))


_LATER = ("optimizer states",)  # made by the first update under ZeRO-3, when no model stands whole on a device


def items_of(role: str, held: Held, what: str = "") -> list[Item]:
    return [Item(role, f"{kind}{what}", size) for kind, size in held.kinds]


def largest_of(candidates: list[Held]) -> Held:
    return max(candidates, key=lambda one: one.total)


def training_moments(
    engine: Engine,
    passes: list[Passes],
    held: list[Item],
    moment: Callable[..., Moment],
    num_passes: int,
) -> Iterator[Moment]:
    """The fullest moment of a forward and a backward pass, of each kind of micro-batch.

    num_passes: micro-batches of an update, the last of which is the fullest. Its gradients grow as activations go.
    """
    before, sums = engine.gradients(num_passes - 1), engine.gradients(num_passes)
    grown = (total(sums) - total(before)) * _head_size(engine) // engine.weights
    of_head = [replace(item, bytes=total(before) + grown) for item in sums]
    for one in passes:
        full = min(1.0, engine.sharding.zero.reduce_bucket_size / engine.weights)  # of the layers, when first reduced
        candidates = [
            (before, one.head, []),
            (of_head, one.layers, engine.of_a_layer()),
            (of_head, one.layers.towards(one.one_layer, full), [*engine.of_a_layer(), *engine.reduction()]),
            (sums, one.one_layer, [*engine.of_a_layer(), *engine.reduction()]),
            (sums, one.embedding, engine.reduction()),
        ]
        found = [
            moment("update", f"{engine.role}, backward", *held, *gradients, *items_of(engine.role, alive), *reduced)
            for gradients, alive, reduced in candidates
        ]
        yield max(found, key=lambda candidate: candidate.device_bytes)


def _head_size(engine: Engine) -> int:
    """The numbers of a head over the vocabulary with weights of its own, whose gradient is the first that is done."""
    module = meta_model(engine.architecture, 1)
    if not isinstance(module, ResponseLM):
        return 0
    head, embeddings = module.model.get_output_embeddings().weight, module.model.get_input_embeddings().weight
    return 0 if head is embeddings else int(head.numel())


def largest_parameter(engines: tuple[Engine, ...]) -> list[Item]:
    return max((engine.largest() for engine in engines), key=total)


def laid_out(policy: Engine) -> list[Item]:
    """On a CPU that multiplies in bfloat16, decoding has a copy of its weights: models/cpu/linear.py."""
    if not decoding_copies_weights(policy.architecture.dtype):
        return []
    module = meta_model(policy.architecture, policy.architecture.num_layers)
    linear = {one.weight for one in module.modules() if type(one) is nn.Linear}
    return [Item("policy", "weights laid out", sum(weight.numel() * weight.element_size() for weight in linear))]
