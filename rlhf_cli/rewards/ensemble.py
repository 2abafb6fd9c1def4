"""The scores of all reward sources of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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
from rlhf_cli.rewards.source import Exchange, RewardSource
from rlhf_cli.rewards.weighted_sum import WeightedSum


class MapMicroBatches(Protocol):
    """Applies `read` to micro-batches of sequences while an engine holds its weights."""

    def __call__(
        self, engine: FrozenEngine, sequences: list[TokenSequence], read: Callable[[list[TokenSequence]], Tensor]
    ) -> list[Tensor]:
        """Return what `read` gives for each sequence, on the CPU."""


class RewardEnsemble:
    """Scores responses with every source of the run.

    All ranks call it together. Each passes its own responses, and all pass the same number of them.
    """

    def __init__(
        self,
        sources: list[RewardSourceConfig],
        to_exchange: Callable[[Prompt, TokenSequence], Exchange],
        reward_model: RewardModel | None,
        classifiers: Mapping[str, ClassifierSource],
        external: Mapping[str, RewardSource],
    ) -> None:
        """Take the sources: the run's reward model; by name, classifiers; functions and services.

        to_exchange: returns the text of a prompt and a response.
        """
        self.sources = sources
        self.weighted_sum = WeightedSum(sources)
        self.to_exchange = to_exchange
        self.reward_model = reward_model
        self.classifiers = classifiers
        self.external = external
        self.failed: dict[str, RewardError] = {}  # failures that were skipped in the last call, by source

    @property
    def engines(self) -> dict[str, FrozenEngine]:
        """The engines of all scoring models, by the option that configures the model."""
        shared = {} if self.reward_model is None else {"reward_model": self.reward_model.engine}
        return shared | {f"reward.{name}.model": source.engine for name, source in self.classifiers.items()}

    def close(self) -> None:
        """Close the functions and services."""
        for source in self.external.values():
            source.close()

    def scores(
        self, prompts: list[Prompt], sequences: list[TokenSequence], map_micro_batches: MapMicroBatches
    ) -> Tensor:
        """Return each source's score of each of this rank's responses, float32 [B, S] on the CPU.

        A source with on_failure=skip that fails gives NaN. If another one fails, all ranks raise
        RewardError.
        """
        self.failed = {}
        exchanges: list[Exchange] = []
        if self.classifiers or self.external:
            exchanges = [self.to_exchange(*pair) for pair in zip(prompts, sequences, strict=True)]
        columns = [self._column(source, exchanges, sequences, map_micro_batches) for source in self.sources]
        return torch.tensor(columns, dtype=torch.float32).T

    def _column(
        self,
        source: RewardSourceConfig,
        exchanges: list[Exchange],
        sequences: list[TokenSequence],
        map_micro_batches: MapMicroBatches,
    ) -> list[float]:
        if source.is_reward_model:
            assert self.reward_model is not None
            scores = map_micro_batches(self.reward_model.engine, sequences, self.reward_model.score)
            return [float(score) for score in scores]
        if not source.is_external:
            return self.classifiers[source.name].score(exchanges)
        external = self.external[source.name]
        try:
            return distributed.together(lambda: external.score(exchanges))
        except RewardError as error:
            if source.on_failure is not OnFailure.skip:
                raise
            self.failed[source.name] = error
            return [math.nan] * len(sequences)
