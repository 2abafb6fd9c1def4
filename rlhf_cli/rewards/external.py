"""From one source of `reward` to the function or the service that it names."""

from __future__ import annotations

from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.rewards.function_source import FunctionSource
from rlhf_cli.rewards.http_source import HttpSource
from rlhf_cli.rewards.source import Source


def outside_source(config: RewardSourceConfig, key: str) -> Source | None:
    """Return the function or the service of a source; None where it has a model.

    Raises InputError for a function that is not there, or an address that is none; key: the source, for messages.
    """
    if config.function is not None:
        return FunctionSource(config, key)
    return None if config.url is None else HttpSource(config, key)
