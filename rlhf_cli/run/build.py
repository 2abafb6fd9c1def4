"""Builds the parts of a PPO run from its configuration: tokenizers, data, models and engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_cli.algo.packing import common_prefix_length
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.objectives import ValueInit
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.pretrain_texts import load_texts
from rlhf_cli.data.prompts import Prompt, load_prompts
from rlhf_cli.data.splits import Splits
from rlhf_cli.data.token_batches import EndTokens, TokenSequence
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import TrainEngine
from rlhf_cli.engine.factory import frozen_engine, train_engine
from rlhf_cli.models.export import export_ends
from rlhf_cli.models.heads import ResponseLM, TokenScorer
from rlhf_cli.models.load_models import check_length, load_causal_lm, load_sequence_classifier, torch_dtype
from rlhf_cli.models.load_tokenizer import load_tokenizer, pad_id
from rlhf_cli.models.model_size import ModelSize
from rlhf_cli.models.packed_forward import reads_packed
from rlhf_cli.plan.phases import Lengths
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.rewards.ensemble import RewardEnsemble
from rlhf_cli.rewards.reward_model import RewardModel
from rlhf_cli.rollout.embedded import EmbeddedSampler, end_token_ids
from rlhf_cli.run.memory_plan import RunPlan, plan_launch
from rlhf_cli.run.reward_sources import exchange_maker, external_sources, load_classifiers
from rlhf_cli.train.flops import ModelSizes
from rlhf_cli.train.forward import ForwardPasses, Models

Loaded = TypeVar("Loaded")
_LONGEST = "data.max_prompt_tokens or rollout.max_new_tokens"


@dataclass(frozen=True)
class PPOParts:
    """The parts of a PPO run."""

    tokenizer: PreTrainedTokenizerBase
    reward_tokenizer: PreTrainedTokenizerBase | None  # None unless the reward model is a source
    renderer: Renderer
    prompts: Splits[Prompt]
    texts: list[TokenSequence]  # blocks for the language-modelling loss
    modules: dict[str, PreTrainedModel]  # policy and value_model, inside their engines
    passes: ForwardPasses  # holds the engines
    gold: RewardModel | None  # scores evaluations only
    sampler: EmbeddedSampler
    sizes: ModelSizes
    planned: RunPlan


def build_ppo(config: TrainPPOConfig, report: Reporter) -> PPOParts:
    """Load tokenizers, data and models; raise InputError if they do not fit together."""
    tokenizer = load_tokenizer(config.model, "model")
    external = external_sources(config)
    reward_tokenizer = load_tokenizer(config.reward_model, "reward_model") if config.has_reward_model else None
    if reward_tokenizer is not None:
        _check_same_tokenizer(tokenizer, reward_tokenizer, "reward_model")
    if config.has_gold:
        gold_tokenizer = load_tokenizer(config.gold_reward_model, "gold_reward_model")
        _check_same_tokenizer(tokenizer, gold_tokenizer, "gold_reward_model")
    renderer = Renderer(tokenizer, config.data)
    prompts = load_once(lambda: load_prompts(config.data, renderer, config.run.seed))
    texts = [] if config.pretrain.path is None else load_texts(config.pretrain, tokenizer)
    for note in (*renderer.notes, *prompts.notes):
        report.say(note)
    if config.rollout.top_p < 1:
        top_p = config.rollout.top_p
        report.warn(f"rollout.top_p={top_p:g} truncates the sampling distribution, so ratio and KL are biased")
    exchange = exchange_maker(renderer, prompts, external)
    planned = plan_launch(config, _lengths(prompts, texts, config.model.packing), report)
    policy, value_model, scorer = loaded = _load_models(config, tokenizer)
    longest = max(len(prompt.ids) for prompt in chain(prompts.train, prompts.eval)) + config.rollout.max_new_tokens + 1
    check_length(policy, longest, "model", _LONGEST)
    if scorer is not None:
        check_length(scorer, longest, "reward_model", _LONGEST)
    check_length(policy, max((len(block) for block in texts), default=0), "model", "pretrain.max_tokens")
    ends = EndTokens(end_token_ids(tokenizer, policy.generation_config) | {renderer.end_id}, pad_id(tokenizer))
    export_ends(policy, ends)
    # measured before sharding
    sizes = ModelSizes(ModelSize.of(policy), ModelSize.of(scorer or value_model), scorer is not None)
    packed = all(reads_packed(model) for model in loaded if model is not None)
    reward_model = None
    if scorer is not None:
        scoring = frozen_engine(TokenScorer(scorer), torch_dtype(config.reward_model), config.deepspeed_of_frozen)
        reward_model = RewardModel(scoring, renderer.end_id, ends, distributed.device())
    policy_engine, value_engine = _train_engines(config, policy, value_model)
    # loaded after the policy is sharded, to save memory
    reference = load_causal_lm(config.model, "model", tokenizer, config.run.seed)
    reference_engine = frozen_engine(ResponseLM(reference), torch_dtype(config.model), config.deepspeed_of_frozen)
    rewards = RewardEnsemble(config.sources, exchange, reward_model, load_classifiers(config), external)
    return PPOParts(
        tokenizer=tokenizer,
        reward_tokenizer=reward_tokenizer,
        renderer=renderer,
        prompts=prompts,
        texts=texts,
        modules={"policy": policy, "value_model": value_model},
        passes=ForwardPasses(config, Models(policy_engine, reference_engine, value_engine, rewards), ends, packed),
        gold=_load_gold(config, renderer, ends, longest),
        sampler=EmbeddedSampler(policy_engine, config.rollout, ends, distributed.device()),
        sizes=sizes,
        planned=planned,
    )


def load_once(load: Callable[[], Loaded]) -> Loaded:
    """Load on rank 0 and broadcast the result; if rank 0 fails, all ranks raise its error.

    The result is pickled, so it must hold this package's own objects only.
    """
    if distributed.world_size() == 1:
        return load()
    first = distributed.together(lambda: load() if distributed.rank() == 0 else None)
    return cast(Loaded, distributed.broadcast(first))


def _lengths(prompts: Splits[Prompt], texts: list[TokenSequence], packing: bool) -> Lengths:
    """Measure the prompts. With packing, the prefix that all of them share is not counted."""
    low = high = next(iter(chain(prompts.train, prompts.eval))).ids
    shortest, longest = len(low), len(low)
    for prompt in chain(prompts.train, prompts.eval):
        low, high = min(low, prompt.ids), max(high, prompt.ids)
        shortest, longest = min(shortest, len(prompt.ids)), max(longest, len(prompt.ids))
    shared = common_prefix_length(low, high) if packing else 0
    return Lengths(max(1, shortest - shared), longest, max((len(block) for block in texts), default=0))


def _load_models(
    config: TrainPPOConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel | None]:
    """Load policy, value model and reward model, None unless the last is a source."""
    seed, reward, checkpointing = config.run.seed, config.reward_model, config.model.gradient_checkpointing
    policy = load_causal_lm(config.model, "model", tokenizer, seed)
    scorer = None
    if config.has_reward_model:
        scorer = load_sequence_classifier(reward, "reward_model", tokenizer, seed, new_head=False)
    if config.value_model.init is ValueInit.reward_model:
        value_config = replace(reward, gradient_checkpointing=checkpointing or reward.gradient_checkpointing)
        value = load_sequence_classifier(value_config, "reward_model", tokenizer, seed, new_head=False)
    else:
        value = load_sequence_classifier(config.model, "model", tokenizer, seed, new_head=True)
    return policy, value, scorer


def _train_engines(
    config: TrainPPOConfig, policy: PreTrainedModel, value_model: PreTrainedModel
) -> tuple[TrainEngine, TrainEngine]:
    """Wrap policy and value model."""
    ppo, deepspeed = config.ppo, config.deepspeed
    policy_updates = (ppo.num_steps - ppo.value_warmup_steps) * ppo.updates_per_step
    value_updates = ppo.num_steps * ppo.updates_per_step
    from_reward_model = config.value_model.init is ValueInit.reward_model
    policy_dtype = torch_dtype(config.model)
    value_dtype = torch_dtype(config.reward_model) if from_reward_model else policy_dtype
    return (
        train_engine(ResponseLM(policy), policy_dtype, config.optim, policy_updates, deepspeed, ppo.ema_decay),
        train_engine(TokenScorer(value_model), value_dtype, config.value_optim, value_updates, deepspeed),
    )


def _load_gold(config: TrainPPOConfig, renderer: Renderer, ends: EndTokens, longest: int) -> RewardModel | None:
    """Load the gold reward model, which scores evaluations only."""
    if not config.has_gold:
        return None
    key, options = "gold_reward_model", config.gold_reward_model
    scorer = load_sequence_classifier(options, key, renderer.tokenizer, config.run.seed, new_head=False)
    check_length(scorer, longest, key, _LONGEST)
    engine = frozen_engine(TokenScorer(scorer), torch_dtype(options), config.deepspeed_of_frozen)
    return RewardModel(engine, renderer.end_id, ends, distributed.device())


def _check_same_tokenizer(policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase, key: str) -> None:
    """Raise InputError unless both make the same ids: the reward model reads the policy's."""
    for what, ours, theirs in (
        ("vocabulary", policy.get_vocab(), reward.get_vocab()),
        ("EOS token", policy.eos_token_id, reward.eos_token_id),
        ("chat template", policy.chat_template, reward.chat_template),
    ):
        if ours != theirs:
            hint = f", or set model.chat_template and {key}.chat_template alike" if what == "chat template" else ""
            raise InputError(f"{key}: its {what} differs from the policy's; use the same tokenizer{hint}")
