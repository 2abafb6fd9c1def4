"""From a configuration to tokenizers, data, models and engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_cli.algo.packing import num_common
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.objectives import ValueInit
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.pretrain_texts import load_texts
from rlhf_cli.data.prompts import Prompt, load_prompts
from rlhf_cli.data.splits import Splits
from rlhf_cli.data.token_batches import EndTokens, TokenSequence
from rlhf_cli.engine import distributed
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
from rlhf_cli.rewards.source import RewardSource
from rlhf_cli.rollout.embedded import EmbeddedSampler, end_token_ids
from rlhf_cli.run.memory_plan import RunPlan, plan_launch
from rlhf_cli.run.reward_sources import Texts, outside_sources, own_models, texts_of
from rlhf_cli.train.flops import Sizes
from rlhf_cli.train.forward import Models

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class PPOParts:
    """All that a PPO run is made of."""

    tokenizer: PreTrainedTokenizerBase
    reward_tokenizer: PreTrainedTokenizerBase | None  # None where no source is the reward model
    renderer: Renderer
    prompts: Splits[Prompt]
    texts: list[TokenSequence]  # blocks for the language-modelling loss
    modules: dict[str, PreTrainedModel]  # policy and value_model, inside their engines
    engines: Models
    gold: RewardModel | None  # which scores evaluations alone
    sampler: EmbeddedSampler
    ends: EndTokens
    sizes: Sizes
    packed: bool  # whether all four models read packed texts
    planned: RunPlan


def build_ppo(config: TrainPPOConfig, report: Reporter) -> PPOParts:
    """Load tokenizers, data and models, and wrap the models; raise InputError for what does not fit together."""
    tokenizer = load_tokenizer(config.model, "model")
    outside = outside_sources(config)
    reward_tokenizer = load_tokenizer(config.reward_model, "reward_model") if config.has_reward_model else None
    if reward_tokenizer is not None:
        _check_same_tokenizer(tokenizer, reward_tokenizer, "reward_model")
    if config.has_gold:
        _check_same_tokenizer(
            tokenizer, load_tokenizer(config.gold_reward_model, "gold_reward_model"), "gold_reward_model"
        )
    renderer = Renderer(tokenizer, config.data)
    prompts = load_once(lambda: load_prompts(config.data, renderer, config.run.seed))
    texts = [] if config.pretrain.path is None else load_texts(config.pretrain, tokenizer)
    for note in (*renderer.notes, *prompts.notes):
        report.say(note)
    if config.rollout.top_p < 1:
        top_p = config.rollout.top_p
        report.warn(f"rollout.top_p={top_p:g} cuts samples that logprobs count: ratio and KL are biased")
    exchanges = texts_of(renderer, prompts, outside)
    planned = plan_launch(config, _lengths(prompts, texts, config.model.packing), report)
    loaded = policy, value, scorer = _models(config, tokenizer)
    longest = max(len(prompt.ids) for prompt in chain(prompts.train, prompts.eval)) + config.rollout.max_new_tokens + 1
    for model, key in ((policy, "model"), (scorer, "reward_model")):
        if model is not None:
            check_length(model, longest, key, "data.max_prompt_tokens or rollout.max_new_tokens")
    check_length(policy, max((len(block) for block in texts), default=0), "model", "pretrain.max_tokens")
    ends = EndTokens(end_token_ids(tokenizer, policy.generation_config) | {renderer.end_id}, pad_id(tokenizer))
    export_ends(policy, ends)
    sizes = Sizes(ModelSize.of(policy), ModelSize.of(scorer or value), scorer is not None)  # before they are sharded
    engines = _engines(config, renderer, ends, loaded, exchanges, outside)
    sampler = EmbeddedSampler(engines.policy, config.rollout, ends, distributed.device())
    modules = {"policy": policy, "value_model": value}
    packed = all(reads_packed(model) for model in loaded if model is not None)
    return PPOParts(
        tokenizer,
        reward_tokenizer,
        renderer,
        prompts,
        texts,
        modules,
        engines,
        _gold(config, renderer, ends, longest),
        sampler,
        ends,
        sizes,
        packed,
        planned,
    )


def _gold(config: TrainPPOConfig, renderer: Renderer, ends: EndTokens, longest: int) -> RewardModel | None:
    """Load the reward model that scores evaluations alone."""
    if not config.has_gold:
        return None
    key, options = "gold_reward_model", config.gold_reward_model
    scorer = load_sequence_classifier(options, key, renderer.tokenizer, config.run.seed, new_head=False)
    check_length(scorer, longest, key, "data.max_prompt_tokens or rollout.max_new_tokens")
    engine = frozen_engine(TokenScorer(scorer), torch_dtype(options), config.deepspeed_of_frozen)
    return RewardModel(engine, renderer.end_id, ends, distributed.device())


def _lengths(prompts: Splits[Prompt], texts: list[TokenSequence], packing: bool) -> Lengths:
    """Measure the prompts; what all of them begin with is read once in a packed pass."""
    low = high = next(iter(chain(prompts.train, prompts.eval))).ids
    shortest, longest = len(low), len(low)
    for prompt in chain(prompts.train, prompts.eval):
        low, high = min(low, prompt.ids), max(high, prompt.ids)
        shortest, longest = min(shortest, len(prompt.ids)), max(longest, len(prompt.ids))
    shared = num_common(low, high) if packing else 0
    return Lengths(max(1, shortest - shared), longest, max((len(block) for block in texts), default=0))


def load_once(load: Callable[[], Loaded]) -> Loaded:
    """Load on rank 0, and send the others what it gave: they tokenise nothing. Where rank 0 fails, all raise its error.

    Items are pickled: own objects only.
    """
    if distributed.world_size() == 1:
        return load()
    first = distributed.together(lambda: load() if distributed.rank() == 0 else None)
    return cast(Loaded, distributed.broadcast(first))


LoadedModels = tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel | None]


def _models(config: TrainPPOConfig, tokenizer: PreTrainedTokenizerBase) -> LoadedModels:
    """Load policy, value model and reward model, None where no source is the last one.

    The reference comes later, when the policy's copy is sharded.
    """
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


def _engines(
    config: TrainPPOConfig,
    renderer: Renderer,
    ends: EndTokens,
    loaded: LoadedModels,
    exchanges: Texts,
    external: Mapping[str, RewardSource],
) -> Models:
    """Wrap the four models; the reference and the classifiers with their own tokenizers are loaded here, last."""
    policy, value, scorer = loaded
    ppo, deepspeed, device, tokenizer = config.ppo, config.deepspeed, distributed.device(), renderer.tokenizer
    updates = ppo.num_steps * ppo.updates_per_step
    policy_updates = (ppo.num_steps - ppo.value_warmup_steps) * ppo.updates_per_step
    policy_dtype, reward_dtype = torch_dtype(config.model), torch_dtype(config.reward_model)
    value_dtype = reward_dtype if config.value_model.init is ValueInit.reward_model else policy_dtype
    reward_model = None
    if scorer is not None:
        scoring = frozen_engine(TokenScorer(scorer), reward_dtype, config.deepspeed_of_frozen)
        reward_model = RewardModel(scoring, renderer.end_id, ends, device)
    policy_engine = train_engine(
        ResponseLM(policy), policy_dtype, config.optim, policy_updates, deepspeed, ppo.ema_decay
    )
    value_engine = train_engine(TokenScorer(value), value_dtype, config.value_optim, updates, deepspeed)
    reference = frozen_engine(
        ResponseLM(load_causal_lm(config.model, "model", tokenizer, config.run.seed)),
        policy_dtype,
        config.deepspeed_of_frozen,
    )
    return Models(
        policy=policy_engine,
        reference=reference,
        judging=RewardEnsemble(config.sources, exchanges, reward_model, own_models(config), external),
        value_model=value_engine,
    )


def _check_same_tokenizer(policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase, key: str) -> None:
    """Raise InputError unless both turn text into the same ids: the reward model reads the policy's tokens."""
    for what, ours, theirs in (
        ("vocabulary", policy.get_vocab(), reward.get_vocab()),
        ("EOS token", policy.eos_token_id, reward.eos_token_id),
        ("chat template", policy.chat_template, reward.chat_template),
    ):
        if ours != theirs:
            hint = f" (or set model.chat_template and {key}.chat_template alike)" if what == "chat template" else ""
            raise InputError(
                f"{key}: its tokenizer has another {what} than the policy's; wanted the same tokenizer{hint}"
            )
