"""The score of a response: a weighted sum over the reward sources."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_cli.algo.normalise import Moments
from rlhf_cli.config.reward_options import Normalise, RewardSourceConfig


class WeightedSum:
    """Sums weight x clip(scale x normalised score) over the sources. S is the number of sources."""

    def __init__(self, sources: Sequence[RewardSourceConfig]) -> None:
        self.sources = list(sources)

    @property
    def names(self) -> list[str]:
        """The names of the sources, in order."""
        return [source.name for source in self.sources]

    def updated_moments(self, moments: dict[str, Moments], scores: Tensor) -> dict[str, Moments]:
        """Return each source's normalisation moments after a step with these scores [B, S].

        The scores are those of all ranks. `fixed` moments are those of the first step, or of all
        steps up to the first whose scores differ.
        """
        updated = {}
        for source, column in zip(self.sources, scores.T, strict=True):
            previous = moments.get(source.name, Moments())
            if source.normalise is Normalise.running or (source.normalise is Normalise.fixed and not previous.squares):
                updated[source.name] = previous.updated(column)
            elif source.normalise is Normalise.fixed:
                updated[source.name] = previous
        return updated

    def parts(self, scores: Tensor, moments: dict[str, Moments] | None = None) -> Tensor:
        """Return what each source adds to the scores [B, S], given the raw scores [B, S].

        moments: of the normalised sources, by name. Without moments, as in evaluations, normalised
        sources are neither normalised nor clipped, so that evaluations stay comparable over a run.
        """
        parts = [self._part(source, column, moments) for source, column in zip(self.sources, scores.T, strict=True)]
        return torch.stack(parts, dim=1)

    def __call__(self, scores: Tensor, moments: dict[str, Moments] | None = None) -> Tensor:
        """Return the score of each response [B]; takes the arguments of `parts`."""
        return self.parts(scores, moments).sum(dim=1)

    def _part(self, source: RewardSourceConfig, scores: Tensor, moments: dict[str, Moments] | None) -> Tensor:
        normalises = source.normalise is not Normalise.none
        if normalises and moments is not None:
            scores = moments[source.name].normalise(scores)
        scores = source.scale * scores
        if source.clip is not None and not (normalises and moments is None):
            scores = scores.clamp(-source.clip, source.clip)
        return source.weight * scores
