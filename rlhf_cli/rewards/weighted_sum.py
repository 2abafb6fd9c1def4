"""One score of a response from what all sources say of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_cli.algo.normalise import Moments
from rlhf_cli.config.reward_options import Normalise, RewardSourceConfig


class WeightedSum:
    """weight x clip(scale x normalised score), summed over the sources."""

    def __init__(self, sources: Sequence[RewardSourceConfig]) -> None:
        self.sources = list(sources)

    @property
    def names(self) -> list[str]:
        """The names of the sources, in order."""
        return [source.name for source in self.sources]

    def learnt(self, moments: dict[str, Moments], scores: Tensor) -> dict[str, Moments]:
        """Return the moments by which scores are normalised, by name, with those of a step: [B, S], all ranks'.

        S: sources, in order. `fixed` moments are those of the first step, or up to the first whose scores differ.
        """
        found = {}
        for source, column in zip(self.sources, scores.T, strict=True):
            was = moments.get(source.name, Moments())
            if source.normalise is Normalise.running or (source.normalise is Normalise.fixed and not was.squares):
                found[source.name] = was.joined(column)
            elif source.normalise is Normalise.fixed:
                found[source.name] = was
        return found

    def parts(self, scores: Tensor, moments: dict[str, Moments] | None = None) -> Tensor:
        """Return what each source adds to the score of each response, [B, S]; scores: [B, S], as the sources say them.

        moments: of the sources that are normalised, by name. Without any, as in evaluations, those are taken as they
        are, neither normalised nor clipped: what is compared over a run must stay on one scale.
        """
        return torch.stack([self._part(*both, moments) for both in zip(self.sources, scores.T, strict=True)], dim=1)

    def __call__(self, scores: Tensor, moments: dict[str, Moments] | None = None) -> Tensor:
        """Return the score [B] of each response; arguments: as of `parts`."""
        return self.parts(scores, moments).sum(dim=1)

    def _part(self, source: RewardSourceConfig, scores: Tensor, moments: dict[str, Moments] | None) -> Tensor:
        normalises = source.normalise is not Normalise.none
        if normalises and moments is not None:
            scores = moments[source.name].normalise(scores)
        scores = source.scale * scores
        if source.clip is not None and not (normalises and moments is None):
            scores = scores.clamp(-source.clip, source.clip)
        return source.weight * scores
