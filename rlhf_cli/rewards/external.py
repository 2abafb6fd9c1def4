"""Opens the function or the service that a reward source is configured with."""

from __future__ import annotations

from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.rewards.function_source import FunctionSource
from rlhf_cli.rewards.http_source import HttpSource
from rlhf_cli.rewards.source import RewardSource


def open_external_source(config: RewardSourceConfig, key: str) -> RewardSource | None:
    """Return the function or the service of a source, None if the source is a model.

    key: the source among the options (reward[0]), for messages. Raises InputError if the function
    cannot be loaded or the URL is not valid.
    """
    if config.function is not None:
        return FunctionSource(config, key)
    return None if config.url is None else HttpSource(config, key)
