"""The moments of a reward-model run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rlhf_cli.config.schema import TrainRMConfig
from rlhf_cli.plan.memory_map import Item, MemoryMap, Moment, Place
from rlhf_cli.plan.phases import (
    Lengths,
    Run,
    items_of,
    largest_parameter,
    shape_of,
    training_moments,
)
from rlhf_cli.plan.trace_memory import Texts, scoring, training


class RewardRun(Run):
    """The reward model in load, score (evaluation and calibration), update and save."""

    def __init__(self, config: TrainRMConfig, place: Place, lengths: Lengths, num_steps: int | None) -> None:
        """num_steps: of the run, where its data are known."""
        super().__init__(config, place, lengths)
        self.config, self.num_steps = config, num_steps
        model = self.engine("model", config.model, shape_of(config.model, "model"), scores=True)
        checkpointing = config.model.gradient_checkpointing
        architecture = replace(model.architecture, checkpointing=checkpointing)
        self.model = replace(model, architecture=architecture, optim=config.optim)

    def map(self) -> MemoryMap:
        """Return all moments."""
        config = self.config
        moments = [*self.loading([(self.model, True)], together=1), *self._score(), *self._update(), *self._save()]
        num_steps = config.train.num_steps if self.num_steps is None else self.num_steps
        return self.mapped(moments, (self.model,), config.checkpoint.most_kept(num_steps))

    def _moment(self, phase: str, name: str, *items: Item, host: list[Item] | None = None) -> Moment:
        return Moment(phase, name, (*self.model.resident(), *items), (*self.model.on_host(), *(host or ())))

    def _texts(self, rows: int, own: int, budget: int | None) -> Texts:
        """A pass of some rows, or of those of a rank that have room in a budget."""
        length, answers = self.lengths.longest_text, self.lengths.answers
        if budget is not None:
            rows = min(own, max(1, budget // (answers * length)))
        return Texts(rows * answers, length, 0)

    def _score(self) -> Iterator[Moment]:
        texts = self._texts(self.config.train.eval_micro_batch_size, 0, None)
        read = items_of("model", scoring(self.model.architecture, texts))
        yield self._moment("score", "held-out rows", *self.model.gathered(False), *read)

    def _update(self) -> Iterator[Moment]:
        train = self.config.train
        own = train.batch_size // self.place.num_ranks
        texts = self._texts(min(train.micro_batch_size, own), own, train.micro_batch_tokens)
        passes = [training(self.model.architecture, texts)]
        held = self.model.gathered(train.gather)
        num = -(-own * self.lengths.answers // texts.rows)
        yield from training_moments(self.model, passes, held, self._moment, num)
        yield self._moment("update", "model, optimizer", *self.model.gradients(num), *self.model.step(num))

    def _save(self) -> Iterator[Moment]:
        written = self.written(self.model.saved)
        yield self._moment("save", "checkpoint", host=[Item("", "a file being written", written)])
        states = (Item("model", "exported weights", self.model.exported),)
        device = (*self.model.resident(), *largest_parameter((self.model,)))
        yield Moment("save", "export", device, tuple(self.model.on_host()), states)
