"""From the options of `reward` to what scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
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


class Texts:
    """The text of prompts and responses, as the policy sees them: with the run's system prompt.

    columns: the names of those that any row has; a row without one has None there.
    """

    def __init__(self, renderer: Renderer, columns: Iterable[str] = ()) -> None:
        self.renderer = renderer
        self.columns = dict.fromkeys(columns)

    def __call__(self, prompt: Prompt, sequence: TokenSequence) -> Exchange:
        return self.of(prompt, self.renderer.answer_text(sequence.response_ids))

    def of(self, prompt: Prompt, response: str) -> Exchange:
        """Return the exchange of a prompt with any response."""
        messages = self.renderer.with_system(list(prompt.messages))
        return Exchange(messages, response, {**self.columns, **prompt.columns})


def texts_of(renderer: Renderer, prompts: Splits[Prompt], outside: Mapping[str, RewardSource]) -> Texts:
    """Return the texts of a run, after asking each source outside of it about a response to the first prompt of each
    side; raise InputError where one fails, as where a side has no row with a column that it needs.
    """
    if not outside:
        return Texts(renderer)
    sides = [(side, _columns(side)) for side in (prompts.train, prompts.eval) if len(side)]
    for side, columns in sides:
        exchange = Texts(renderer, columns).of(side[0], "Yes.")
        for source in outside.values():
            try:
                distributed.together(lambda source=source, exchange=exchange: source.score([exchange]))  # type: ignore[misc]
            except RewardError as error:
                raise as_input_error(error) from error
    return Texts(renderer, chain.from_iterable(columns for _, columns in sides))


def _columns(prompts: Iterable[Prompt]) -> dict[str, None]:
    """The names of the columns that any row has, in the order in which they come up."""
    return {name: None for prompt in prompts for name in prompt.columns}


def outside_sources(config: TrainPPOConfig) -> dict[str, RewardSource]:
    """Return the functions and services of a run, by name; raise InputError for a function that is not there."""
    opened = {
        source.name: open_external_source(source, f"reward[{place}]") for place, source in enumerate(config.reward)
    }
    return {name: source for name, source in opened.items() if source is not None}


def as_input_error(error: RewardError) -> InputError:
    """Return what a source said before a run has begun: nothing is lost, and no checkpoint is to be looked for."""
    found = InputError(str(error))
    found.second_hand = error.second_hand
    return found


def own_models(config: TrainPPOConfig) -> dict[str, ClassifierSource]:
    """Load the models with tokenizers of their own, by name."""
    return {
        source.name: _own_model(config, source, model, f"reward[{place}].model")
        for place, source in enumerate(config.reward)
        if (model := source.own_model(f"reward[{place}]")) is not None
    }


def _own_model(config: TrainPPOConfig, source: RewardSourceConfig, options: ModelConfig, key: str) -> ClassifierSource:
    deepspeed = with_weights_on_host(config.deepspeed) if source.offload else config.deepspeed_of_frozen
    data = replace(config.data, system_prompt=None)  # exchanges have it already

    def wrap(module: nn.Module) -> FrozenEngine:
        return frozen_engine(module, torch_dtype(options), deepspeed)

    read = load_text_classifier(options, key, data, source.whole_turn, wrap, distributed.device())
    return ClassifierSource(read, source.batch_size, config.rollout.gather)
