"""What all sources of a run say of responses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from rlhf_cli.config.errors import RewardError
from rlhf_cli.config.reward_options import OnFailure, RewardSourceConfig
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.token_batches import TokenSequence
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import FrozenEngine
from rlhf_cli.rewards.classifier_source import ClassifierSource
from rlhf_cli.rewards.reward_model import RewardModel
from rlhf_cli.rewards.source import Exchange, Source
from rlhf_cli.rewards.weighted_sum import WeightedSum


class MapMicroBatches(Protocol):
    """Applies `read` to micro-batches of sequences while an engine holds its weights."""

    def __call__(
        self, engine: FrozenEngine, sequences: list[TokenSequence], read: Callable[[list[TokenSequence]], Tensor]
    ) -> list[Tensor]:
        """Return on the CPU what `read` gives for each sequence."""


class RewardEnsemble:
    """Asks the sources; all ranks together, each about its own responses, and all about as many.

    exchange: the text of a prompt and a response. reward_model, own, outside: what answers, for the sources of each
    kind; `own` and `outside` by name.
    """

    def __init__(
        self,
        sources: list[RewardSourceConfig],
        exchange: Callable[[Prompt, TokenSequence], Exchange],
        reward_model: RewardModel | None = None,
        own: Mapping[str, ClassifierSource] = MappingProxyType({}),
        outside: Mapping[str, Source] = MappingProxyType({}),
    ) -> None:
        self.sources = sources
        self.weigh = WeightedSum(sources)
        self.exchange = exchange
        self.reward_model = reward_model
        self.own = own
        self.outside = outside
        self.failed: dict[str, RewardError] = {}  # of the last call: sources whose failures are skipped

    @property
    def engines(self) -> dict[str, FrozenEngine]:
        """The engines of all models that score, by the option that names them."""
        lone = {} if self.reward_model is None else {"reward_model": self.reward_model.engine}
        return {**lone, **{f"reward.{name}.model": model.engine for name, model in self.own.items()}}

    def close(self) -> None:
        """Give back what functions and services hold."""
        for source in self.outside.values():
            source.close()

    def scores(
        self, prompts: list[Prompt], sequences: list[TokenSequence], map_micro_batches: MapMicroBatches
    ) -> Tensor:
        """Return what each source says of each of this rank's responses, float32 [B, S] on the CPU.

        NaN where a source failed whose failures are skipped; raises RewardError, on all ranks, where another one did.
        """
        self.failed = {}
        exchanges = self._exchanges(prompts, sequences)
        columns = [self._column(source, exchanges, sequences, map_micro_batches) for source in self.sources]
        return torch.tensor(columns, dtype=torch.float32).T

    def _exchanges(self, prompts: list[Prompt], sequences: list[TokenSequence]) -> list[Exchange]:
        if not self.own and not self.outside:
            return []  # nobody reads texts
        return [self.exchange(*both) for both in zip(prompts, sequences, strict=True)]

    def _column(
        self,
        source: RewardSourceConfig,
        exchanges: list[Exchange],
        sequences: list[TokenSequence],
        map_micro_batches: MapMicroBatches,
    ) -> list[float]:
        if source.is_reward_model:
            assert self.reward_model is not None
            return [
                float(score)
                for score in map_micro_batches(self.reward_model.engine, sequences, self.reward_model.score)
            ]
        if not source.is_outside:
            return self.own[source.name].score(exchanges)
        outside = self.outside[source.name]
        try:
            return distributed.together(lambda: outside.score(exchanges))
        except RewardError as error:
            if source.on_failure is not OnFailure.skip:
                raise
            self.failed[source.name] = error
            return [math.nan] * len(sequences)
