"""Scores responses with the reward of a command line: a trained model, a service or a function."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.rewards.external import open_external_source
from rlhf_cli.rewards.source import Exchange, RewardSource, describe, validated_scores
from rlhf_cli.use.cli_options import Reward
from rlhf_cli.use.trained_reward_model import TrainedRewardModel, find_device

_NUM_PROBES = 8  # exchanges that are scored twice
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5  # tolerated difference between two scores: services batch as they like


class ResponseScorer:
    """A reward source whose scores must be finite, and repeatable unless it is random."""

    def __init__(self, source: RewardSource, name: str, is_random: bool) -> None:
        self.name = name
        self._source = source
        self._is_random = is_random
        self._is_probed = False

    @staticmethod
    def open(reward: Reward) -> ResponseScorer:
        """Open the source; raise InputError if that fails."""
        config = reward.config
        source = open_external_source(config, reward.option)
        if source is None:
            assert reward.model is not None
            device = find_device(reward.device)
            source = TrainedRewardModel(reward.model, device, config.batch_size, whole_turn=config.whole_turn)
        url = None if config.url is None else config.url.partition("?")[0]  # the query may hold a secret
        return ResponseScorer(source, config.function or url or str(config.model), config.random)

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Return one score for each exchange, in order; the first call probes the source.

        Raises RewardError if the source fails.
        """
        if not self._is_probed and exchanges:
            self.probe(exchanges)
            self._is_probed = True
        return validated_scores(self._source.score(exchanges), exchanges, f"reward {self.name}")

    def probe(self, exchanges: Sequence[Exchange]) -> None:
        """Score some exchanges twice; raise InputError if that fails or the scores differ."""
        probes, source = _probes(exchanges), f"reward {self.name}"
        try:
            first, second = (validated_scores(self._source.score(probes), probes, source) for _ in range(2))
        except RewardError as error:  # nothing has been computed yet that could be lost
            raise InputError(str(error)) from error
        for before, after, exchange in zip(first, second, probes, strict=True):
            if not (self._is_random or math.isclose(before, after, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)):
                what = f"{before:g} and then {after:g} for {describe(exchange)}"
                raise InputError(f"{source}: got {what}, wanted the same score twice; set --random if it may differ")

    def close(self) -> None:
        """Close the source."""
        self._source.close()


def _probes(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """Return the first exchanges, and later ones with a column that none before them has."""
    probes: list[Exchange] = []
    columns: set[str] = set()
    for exchange in exchanges:
        if len(probes) < _NUM_PROBES or not columns.issuperset(exchange.columns):
            probes.append(exchange)
            columns.update(exchange.columns)
    return probes
