"""The memory map of a reward-model run."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_cli.config.schema import TrainRMConfig
from rlhf_cli.plan.architecture import Architecture
from rlhf_cli.plan.engine_memory import EngineMemory
from rlhf_cli.plan.memory_map import MemoryMap, Moment, Topology
from rlhf_cli.plan.phases import Lengths, RunMemory, items_of
from rlhf_cli.plan.trace_memory import Texts, scoring, training


class RewardMemory(RunMemory):
    """The reward model in load, score (evaluation and calibration), update and save."""

    def __init__(self, config: TrainRMConfig, topology: Topology, lengths: Lengths) -> None:
        super().__init__(config, topology, lengths)
        self.config = config
        architecture = Architecture.of(config.model, "model", scores=True)
        self.model = EngineMemory("model", architecture, self.sharding(config.deepspeed), config.optim)
        self.engines = (self.model,)

    def memory_map(self, num_steps: int | None) -> MemoryMap:
        """Return the memory map of the run; num_steps: once its data are known."""
        moments = [*self.loading(num_together=1), self._score(), *self._update(), *self.saving()]
        num_steps = self.config.train.num_steps if num_steps is None else num_steps
        return self.build(moments, self.config.checkpoint.most_kept(num_steps))

    def _texts(self, rows: int) -> Texts:
        return Texts(rows * self.lengths.answers, self.lengths.longest_text, 0)

    def _score(self) -> Moment:
        held = scoring(self.model.architecture, self._texts(self.config.train.eval_micro_batch_size))
        return self.moment("score", "held-out rows", *self.model.gathered(False), *items_of(self.model, held))

    def _update(self) -> Iterator[Moment]:
        train = self.config.train
        rows = size = self.rows_per_rank(train.batch_size)
        if train.micro_batch_tokens is None:
            rows = min(train.micro_batch_size, size)
        else:
            rows = min(size, max(1, train.micro_batch_tokens // (self.lengths.answers * self.lengths.longest_text)))
        passes = [training(self.model.architecture, self._texts(rows))]
        yield from self.updating(self.model, passes, train.gather, num_passes=-(-size // rows))
