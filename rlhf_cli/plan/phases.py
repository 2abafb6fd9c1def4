"""The moments that PPO and reward-model runs have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from rlhf_cli.config.plan_options import num_bytes
from rlhf_cli.config.schema import TrainPPOConfig, TrainRMConfig
from rlhf_cli.config.zero_settings import ZeroSettings
from rlhf_cli.engine.roofline import CPU_SIDE, GPU_SIDE
from rlhf_cli.engine.shards import FILE_BYTES
from rlhf_cli.models.heads import ResponseLM
from rlhf_cli.models.kernels import decoding_copies_weights
from rlhf_cli.plan.architecture import meta_model
from rlhf_cli.plan.engine_memory import EngineMemory, Sharding
from rlhf_cli.plan.memory_map import Item, MemoryMap, Moment, Topology, total
from rlhf_cli.plan.trace_memory import Held, Passes

Config = TrainPPOConfig | TrainRMConfig


@dataclass(frozen=True)
class Lengths:
    """Tokens of the texts that a run reads; by default what its options allow."""

    shortest_prompt: int  # counts what a packed pass reads for this prompt alone, without a beginning that all share
    longest_prompt: int
    longest_text: int  # of a pretraining block, or of an answer with its prompt
    answers: int = 2  # per prompt, in preference data

    @staticmethod
    def allowed(config: Config) -> Lengths:
        """Return the longest lengths that the options allow; the shortest prompt is one token."""
        if isinstance(config, TrainPPOConfig):
            block = config.pretrain.max_tokens if config.pretrain.path is not None else 0
            return Lengths(1, config.data.max_prompt_tokens, block)
        return Lengths(1, 1, config.data.max_tokens)


class RunMemory:
    """The moments that all runs have, made from the engines of the run."""

    engines: tuple[EngineMemory, ...]  # in the order in which they are loaded; constructors of subclasses set it

    def __init__(self, config: Config, topology: Topology, lengths: Lengths) -> None:
        self.topology, self.lengths = topology, lengths
        self.context = num_bytes(config.plan.gpu_overhead, "plan.gpu_overhead") if topology.on_gpu else 0

    @property
    def trained(self) -> list[EngineMemory]:
        """The engines with an optimizer."""
        return [engine for engine in self.engines if engine.optim is not None]

    def sharding(self, deepspeed: dict[str, Any]) -> Sharding:
        """Return how a section of DeepSpeed options distributes weights."""
        return Sharding(self.topology.num_ranks, ZeroSettings.of(deepspeed), self.topology.on_gpu)

    def rows_per_rank(self, batch_size: int) -> int:
        """Return a rank's share of a batch, rounded up."""
        return -(-batch_size // self.topology.num_ranks)

    def moment(self, phase: str, name: str, *items: Item) -> Moment:
        """Return a moment with these items on the device, besides what always stays there."""
        resident = (item for engine in self.engines for item in engine.resident())
        host = (item for engine in self.engines for item in engine.on_host())
        return Moment(phase, name, (*resident, *items), tuple(host))

    def build(self, moments: Iterable[Moment], num_checkpoints: int) -> MemoryMap:
        """Return the map of these moments; num_checkpoints: most that are on disk at once."""
        saved, exported = (sum(getattr(engine, name) for engine in self.trained) for name in ("saved", "exported"))
        return MemoryMap(tuple(moments), self.topology, self.context, saved, num_checkpoints, exported)

    def loading(self, num_together: int) -> Iterator[Moment]:
        """Load each model in full to host memory, move it to the device, and shard it there.

        num_together: the first engines, all of which are in host memory before the first one is
        moved.
        """
        device: list[Item] = []
        host: list[Item] = []
        for number, engine in enumerate(self.engines):
            waiting = [_full(other, "loaded weights") for other in self.engines[number + 1 : num_together]]
            if number == 0 or number >= num_together:
                loaded = (*host, _full(engine, "loaded weights"), *waiting)
                yield Moment("load", f"{engine.role} loaded", tuple(device), loaded)
            if engine.sharding.uses_zero:
                moved = (*device, _full(engine, "unsharded weights"))
                yield Moment("load", f"{engine.role} moved to the device", moved, (*host, *waiting))
            if engine.optim is not None:
                started = (*device, *engine.start())
                yield Moment("load", f"{engine.role} engine started", started, (*host, *waiting))
            # ZeRO-3 creates the optimizer states in the first update, when no full model is left
            later = ("optimizer states",) if engine.sharding.uses_zero else ()
            device += [item for item in engine.resident() if item.what not in later]
            host += [item for item in engine.on_host() if item.what not in later]
        side = GPU_SIDE if self.topology.on_gpu else CPU_SIDE
        matrices = Item("", "matrices", 3 * self.engines[0].architecture.dtype.itemsize * side**2)
        yield Moment("load", "matrix products timed", (*device, matrices), tuple(host))

    def updating(self, engine: EngineMemory, passes: list[Passes], gather: bool, num_passes: int) -> Iterator[Moment]:
        """Return the fullest moment of each kind of micro-batch's passes, and the optimizer step.

        num_passes: micro-batches per update. The last is the fullest: earlier ones have left their
        gradients, and its own gradients grow while its activations shrink.
        """
        before, sums = engine.gradients(num_passes - 1), engine.gradients(num_passes)
        grown = (total(sums) - total(before)) * _head_size(engine) // engine.weights
        of_head = [replace(item, bytes=total(before) + grown) for item in sums]
        layer, reduction = engine.layer_gradients(), engine.reduction()
        for one in passes:
            full = min(1.0, engine.sharding.zero.reduce_bucket_size / engine.weights)  # layers done at first reduction
            candidates = [
                (before, one.head, []),
                (of_head, one.layers, layer),
                (of_head, _between(one.layers, one.one_layer, full), [*layer, *reduction]),
                (sums, one.one_layer, [*layer, *reduction]),
                (sums, one.embedding, reduction),
            ]
            held = engine.gathered(gather)
            moments = [
                self.moment("update", f"{engine.role}, backward", *held, *gradients, *items_of(engine, live), *more)
                for gradients, live, more in candidates
            ]
            yield max(moments, key=lambda moment: moment.device_bytes)
        yield self.moment("update", f"{engine.role}, optimizer", *sums, *engine.step(num_passes))

    def saving(self) -> Iterator[Moment]:
        """Write a checkpoint, file by file (twice copied from a GPU), and export on rank 0."""
        size = min(FILE_BYTES, sum(engine.saved for engine in self.trained) // self.topology.num_ranks)
        written = Item("", "a checkpoint file", size * (1 + self.topology.on_gpu))
        moment = self.moment("save", "checkpoint")
        yield replace(moment, host=(*moment.host, written))
        gathered = max((engine.largest_gathered() for engine in self.trained), key=total)
        exported = tuple(Item(engine.role, "exported weights", engine.exported) for engine in self.trained)
        yield replace(self.moment("save", "export", *gathered), host_of_rank_0=exported)


def items_of(engine: EngineMemory, held: Held, suffix: str = "") -> list[Item]:
    """Return what a pass of an engine holds as items."""
    return [Item(engine.role, f"{kind}{suffix}", size) for kind, size in held.items()]


def reordered_weights(policy: EngineMemory) -> list[Item]:
    """Return the copy of linear weights that decoding makes on some CPUs: models/kernels.py."""
    if not decoding_copies_weights(policy.architecture.dtype):
        return []
    module = meta_model(policy.architecture, policy.architecture.num_layers)
    linear = {layer.weight for layer in module.modules() if type(layer) is nn.Linear}
    return [Item(policy.role, "reordered weights", sum(weight.nbytes for weight in linear))]


def _full(engine: EngineMemory, what: str) -> Item:
    return Item(engine.role, what, engine.full_bytes)


def _between(start: Held, end: Held, share: float) -> Held:
    """Return what is held after a share of the way from start to end."""
    return Held({kind: round(size + share * (end[kind] - size)) for kind, size in start.items()})


def _head_size(engine: EngineMemory) -> int:
    """Return the elements of an untied language-model head, whose gradient is finished first."""
    module = meta_model(engine.architecture, 1)
    if not isinstance(module, ResponseLM):
        return 0
    head, embeddings = module.model.get_output_embeddings().weight, module.model.get_input_embeddings().weight
    return 0 if head is embeddings else int(head.numel())
