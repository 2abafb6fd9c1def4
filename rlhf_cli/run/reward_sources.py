"""Opens the reward sources that the options under `reward` describe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain

from torch import nn

from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.config.sections import ModelConfig
from rlhf_cli.config.zero_settings import with_weights_on_host
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.splits import Splits
from rlhf_cli.data.token_batches import TokenSequence
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import FrozenEngine
from rlhf_cli.engine.factory import frozen_engine
from rlhf_cli.models.load_models import torch_dtype
from rlhf_cli.rewards.classifier_source import ClassifierSource, load_text_classifier
from rlhf_cli.rewards.external import open_external_source
from rlhf_cli.rewards.source import Exchange, RewardSource


class ExchangeMaker:
    """Makes the exchanges that reward sources read, with the run's system prompt.

    columns: all column names of the data; a row without one of them gets None.
    """

    def __init__(self, renderer: Renderer, columns: Iterable[str] = ()) -> None:
        self.renderer = renderer
        self.columns = dict.fromkeys(columns)

    def __call__(self, prompt: Prompt, sequence: TokenSequence) -> Exchange:
        return self.of(prompt, self.renderer.response_text(sequence.response_ids))

    def of(self, prompt: Prompt, response: str) -> Exchange:
        """Return the exchange of a prompt and a response text."""
        messages = self.renderer.with_system(list(prompt.messages))
        return Exchange(messages, response, {**self.columns, **prompt.columns})


def exchange_maker(renderer: Renderer, prompts: Splits[Prompt], external: Mapping[str, RewardSource]) -> ExchangeMaker:
    """Return the exchange maker of a run, after testing functions and services on each split.

    Raises InputError if one fails, for example because a split lacks a column that it needs.
    """
    if not external:
        return ExchangeMaker(renderer)
    sides = [(side, _columns(side)) for side in (prompts.train, prompts.eval) if len(side)]
    for side, columns in sides:
        exchange = ExchangeMaker(renderer, columns).of(side[0], "Yes.")
        for source in external.values():
            score = partial(source.score, [exchange])
            try:
                distributed.together(score)
            except RewardError as error:
                raise as_input_error(error) from error
    return ExchangeMaker(renderer, chain.from_iterable(columns for _, columns in sides))


def _columns(prompts: Iterable[Prompt]) -> dict[str, None]:
    """Return all column names of the rows, in order of appearance."""
    return {name: None for prompt in prompts for name in prompt.columns}


def external_sources(config: TrainPPOConfig) -> dict[str, RewardSource]:
    """Open the reward functions and services of a run; raise InputError for a missing function."""
    opened = ((one.name, open_external_source(one, f"reward[{index}]")) for index, one in enumerate(config.reward))
    return {name: source for name, source in opened if source is not None}


def as_input_error(error: RewardError) -> InputError:
    """Convert a failure before the run has started, when there is no checkpoint to resume from."""
    found = InputError(str(error))
    found.second_hand = error.second_hand
    return found


def load_classifiers(config: TrainPPOConfig) -> dict[str, ClassifierSource]:
    """Load the reward models with their own tokenizers, by name."""
    return {
        source.name: _load_classifier(config, source, model, f"reward[{index}].model")
        for index, source in enumerate(config.reward)
        if (model := source.own_model(f"reward[{index}]")) is not None
    }


def _load_classifier(
    config: TrainPPOConfig, source: RewardSourceConfig, options: ModelConfig, key: str
) -> ClassifierSource:
    deepspeed = with_weights_on_host(config.deepspeed) if source.offload else config.deepspeed_of_frozen
    data = replace(config.data, system_prompt=None)  # exchanges contain it

    def wrap(module: nn.Module) -> FrozenEngine:
        return frozen_engine(module, torch_dtype(options), deepspeed)

    read = load_text_classifier(options, key, data, source.whole_turn, wrap, distributed.device())
    return ClassifierSource(read, source.batch_size, config.rollout.gather)
