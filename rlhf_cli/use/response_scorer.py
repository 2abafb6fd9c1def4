"""What scores answers: a trained model, a service or a function, tried before it is believed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.rewards.external import open_external_source
from rlhf_cli.rewards.source import Exchange, RewardSource, describe, validated_scores
from rlhf_cli.use.cli_options import Rewarding
from rlhf_cli.use.reward_scorer import RewardScorer, device_of
from rlhf_cli.use.trained_runs import Role, find, with_options

_NUM_TRIED = 8  # exchanges that are scored twice
_RELATIVE = 1e-4  # by which a score may differ the next time: services batch as they like
_ABSOLUTE = 1e-5


class ResponseScorer:
    """A source that has to give finite numbers, as many as it is asked for, and the same again."""

    def __init__(self, source: RewardSource, name: str, is_random: bool) -> None:
        self.name = name
        self._source = source
        self._is_random = is_random
        self._is_tried = False

    @staticmethod
    def of(rewarding: Rewarding, key: str) -> ResponseScorer:
        """Open the source; raise InputError where it is not there. key: the option that names it, for messages."""
        config = rewarding.config
        address = None if config.url is None else config.url.partition("?")[0]  # a query may hold a secret
        return ResponseScorer(_opened(rewarding, key), config.function or address or str(config.model), config.random)

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Return one score an exchange, in order.

        The first time some are asked twice. Raises RewardError where the source fails, and InputError where it says
        something else the second time and is not known to be random.
        """
        if not self._is_tried and exchanges:
            self.try_on(exchanges)
            self._is_tried = True
        return validated_scores(self._source.score(exchanges), exchanges, f"reward {self.name}")

    def try_on(self, exchanges: Sequence[Exchange]) -> None:
        """Score the first exchanges twice; raise InputError where that fails, or differs and is not known to."""
        exchanges = _first(exchanges)
        who = f"reward {self.name}"
        try:
            first, second = (validated_scores(self._source.score(exchanges), exchanges, who) for _ in range(2))
        except RewardError as error:  # nothing has been done yet that could be lost
            raise InputError(str(error)) from error
        for one, other, exchange in zip(first, second, exchanges, strict=True):
            if not (self._is_random or math.isclose(one, other, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)):
                what = f"{one:g} and then {other:g} for {describe(exchange)}"
                raise InputError(f"{who}: said {what}, wanted the same twice; give --random if it is meant to differ")

    def close(self) -> None:
        """Give back what the source holds."""
        self._source.close()


def _first(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """Return the first exchanges, and of later ones those with a column that none before them has."""
    found: list[Exchange] = []
    columns: set[str] = set()
    for exchange in exchanges:
        if len(found) < _NUM_TRIED or not columns.issuperset(exchange.columns):
            found.append(exchange)
            columns.update(exchange.columns)
    return found


def _opened(rewarding: Rewarding, key: str) -> RewardSource:
    config, loading = rewarding.config, rewarding.loading
    outside = open_external_source(config, key)
    if outside is not None:
        return outside
    found = find(str(config.model), Role.reward_model)
    found = with_options(found, loading.system_prompt, loading.dtype, loading.trust_remote_code)
    return RewardScorer(found, device_of(loading.device), config.batch_size, whole_turn=config.whole_turn)
