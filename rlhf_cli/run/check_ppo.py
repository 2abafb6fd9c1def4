"""The checks of a PPO run before its first update: models, sampler and texts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_cli.algo.sampling import distance_from_slice
from rlhf_cli.config.errors import RewardError
from rlhf_cli.config.objectives import ValueInit
from rlhf_cli.config.sections import DataConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.token_batches import TokenSequence, chunks, collate
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import FrozenEngine
from rlhf_cli.report.check_table import Check
from rlhf_cli.rollout.embedded import uniforms
from rlhf_cli.run.checks import BFLOAT16, Bounds, bounds_of, largest, relative, spread, worst_of_all_ranks
from rlhf_cli.run.reward_sources import as_input_error
from rlhf_cli.train.batch import Rollout, Samples
from rlhf_cli.train.ppo import PPOTrainer

_LOGIT = 16.0  # the size that bfloat16's bounds assume, at temperature 1


@dataclass(frozen=True)
class Tokenizers:
    """How the policy and the reward model turn text into ids."""

    policy: PreTrainedTokenizerBase
    reward: PreTrainedTokenizerBase | None  # None unless the reward model is a source
    data: DataConfig


@torch.no_grad()
def check_ppo(trainer: PPOTrainer, prompts: Sequence[Prompt], tokenizers: Tokenizers, bounds: Bounds) -> list[Check]:
    """Check models, sampler and texts of a run before its first update; collective."""
    probes = spread(prompts, [len(prompt.ids) for prompt in prompts], trainer.config.check.num_prompts)
    keys = [f"{trainer.config.run.seed}/check/{number}" for number in range(len(probes))]
    # rounding could make ranks sample different tokens; from here on all ranks use the same ones
    sequences = distributed.broadcast(trainer.sampler.sample([probe.ids for probe in probes], keys))
    samples = Samples(probes, list(range(len(probes))), sequences)
    rollout, again = (_score(trainer, samples) for _ in range(2))
    bounds = _for_logits(bounds, trainer, sequences)
    checks = [
        *_start_checks(trainer, rollout, again, sequences, bounds),
        *_padding_checks(trainer, sequences, bounds),
        *_source_checks(trainer, (rollout, again), samples),
        *_update_checks(trainer, rollout, sequences, bounds),
        _sampling_check(trainer, sequences, keys, bounds),
        *_text_checks(samples, tokenizers),
        *_end_checks(trainer, sequences, Renderer(tokenizers.policy, tokenizers.data)),
    ]
    return worst_of_all_ranks(checks)


def _score(trainer: PPOTrainer, samples: Samples) -> Rollout:
    try:
        rollout = trainer.score(samples)
    except RewardError as error:
        raise as_input_error(error) from error
    failed = trainer.models.rewards.failed
    if failed:
        raise as_input_error(next(iter(failed.values())))
    return rollout


def _for_logits(bounds: Bounds, trainer: PPOTrainer, sequences: list[TokenSequence]) -> Bounds:
    """Widen bfloat16's bounds to the size of the run's logits.

    With 8 bits, logits from 16 on are multiples of 1/8, from 32 on of 1/4, and the temperature
    divides them. If another batch shape rounds a logit the other way, its logprob is off by that.
    """
    if bounds is not BFLOAT16:
        return bounds
    size = float(trainer.passes.response_logits(sequences[:1]).float().abs().amax(dim=1).mean())
    factor = max(1.0, size / _LOGIT / trainer.config.rollout.temperature)
    # the share of tokens beyond the clip range grows faster than the spread
    return replace(bounds, padded=bounds.padded * factor, clipped=bounds.clipped * factor**2)


def _start_checks(
    trainer: PPOTrainer, rollout: Rollout, again: Rollout, sequences: list[TokenSequence], bounds: Bounds
) -> list[Check]:
    models = trainer.models
    of_models = [index for index, source in enumerate(models.rewards.sources) if not source.is_external]
    repeated = largest(
        *(getattr(rollout, name) - getattr(again, name) for name in ("logprobs", "ref_logprobs", "values")),
        (rollout.source_scores - again.source_scores)[:, of_models],
    )
    frozen = sum(_num_unfrozen(engine) for engine in (models.reference, *models.rewards.engines.values()))
    kl = largest(rollout.logprobs - rollout.ref_logprobs)
    same_weights = "the reference must start with the policy's weights and dtype"
    no_noise = "a model has dropout, noise or random routing; switch it off"
    return [
        Check("KL(policy || reference) is 0", kl, bounds.same, same_weights),
        Check("a second pass gives the same numbers", repeated, bounds.same, no_noise),
        _value_check(trainer, sequences, bounds),
        Check("reference and reward model are frozen", frozen, 0, "parameters with gradients, or layers in train mode"),
    ]


def _value_check(trainer: PPOTrainer, sequences: list[TokenSequence], bounds: Bounds) -> Check:
    models = trainer.models
    if trainer.config.value_model.init is ValueInit.policy:
        difference = models.value_model.largest_difference(models.policy)
        advice = "the weights of policy and value model differ beyond their heads"
        return Check("the value model starts from the policy's backbone", difference, 0, advice)
    reward_model, differences = models.rewards.reward_model, []
    assert reward_model is not None  # TrainPPOConfig.check_together
    for part in chunks(sequences, trainer.config.ppo.micro_batch_size):
        batch = collate(part, trainer.passes.ends.pad_id, trainer.device)
        values = models.value_model(batch.input_ids, packing=batch.packing)[0]
        scores = reward_model.engine(batch.input_ids, packing=batch.packing)[0]
        differences.append(batch.before_each_response_token(values - scores))
    advice = "the reward model's head must be copied with its backbone, in the same dtype"
    return Check("the value model starts as the reward model", largest(*differences), bounds.same, advice)


def _padding_checks(trainer: PPOTrainer, sequences: list[TokenSequence], bounds: Bounds) -> list[Check]:
    """Compare each sequence alone with the same sequence in a batch of different lengths."""
    mixed = [_half(sequence) if index % 2 else sequence for index, sequence in enumerate(sequences)]
    parts = chunks(mixed, max(2, trainer.config.ppo.micro_batch_size))
    together = torch.cat([row for part in parts for row in trainer.passes.response_logprobs(part)])
    alone = torch.cat([trainer.passes.response_logprobs([sequence])[0] for sequence in mixed])
    difference = float((together - alone).abs().mean())
    advice = "masks or positions are wrong, or the model mixes rows; see the model's attention implementation"
    checks = [Check("logprobs do not depend on padding or neighbours", difference, bounds.padded, advice)]
    reward_model = trainer.models.rewards.reward_model
    if reward_model is None:
        return checks
    scores = torch.cat([reward_model.score(part).cpu() for part in parts])
    alone_scores = torch.cat([reward_model.score([sequence]).cpu() for sequence in mixed])
    advice = "the reward model's masks, positions or last token are wrong"
    name = "scores do not depend on padding or neighbours"
    return [*checks, Check(name, relative(scores, alone_scores), bounds.score, advice)]


def _half(sequence: TokenSequence) -> TokenSequence:
    """Cut a response to its first half."""
    return replace(sequence, response_ids=sequence.response_ids[: (len(sequence.response_ids) + 1) // 2])


def _source_checks(trainer: PPOTrainer, rollouts: tuple[Rollout, Rollout], samples: Samples) -> list[Check]:
    """Check models with their own tokenizers on single texts; score twice with other sources."""
    rewards, checks = trainer.models.rewards, []
    start = distributed.rank() * len(samples.sequences)  # a rollout holds the rows of all ranks
    for index, source in enumerate(rewards.sources):
        first, second = (one.source_scores[start : start + len(samples.sequences), index] for one in rollouts)
        own = source.own_model("reward")
        if own is not None:
            texts = [rewards.to_exchange(*both) for both in zip(samples.prompts, samples.sequences, strict=True)]
            alone = torch.tensor([rewards.classifiers[source.name].score([text])[0] for text in texts])
            name = f"scores of {source.name} do not depend on padding or neighbours"
            advice = "its masks, positions or last token are wrong; see reward[].whole_turn and its chat template"
            checks.append(Check(name, relative(first, alone), bounds_of(own).score, advice))
        elif source.is_external and not source.random:
            name = f"{source.name} gives the same scores twice"
            advice = f"fix the source, or set random: true in the source {source.name} of reward"
            checks.append(Check(name, relative(first, second), BFLOAT16.score, advice))
    return checks


def _update_checks(
    trainer: PPOTrainer, rollout: Rollout, sequences: list[TokenSequence], bounds: Bounds
) -> list[Check]:
    """Evaluate the update's own objective, in other micro-batches than those of the scoring."""
    batch = trainer.estimate(rollout)
    size = max(1, min(trainer.config.ppo.micro_batch_size, len(sequences) // 2))
    num_tokens = sum(len(sequence.response_ids) for sequence in sequences)
    kl = clipped = 0.0
    for rows in chunks(list(range(len(sequences)))[::-1], size):
        tokens = collate([sequences[row] for row in rows], trainer.passes.ends.pad_id, trainer.device)
        part = batch.rows(rows, tokens.response_mask, trainer.device)
        _, sums = trainer.policy_objective(part, tokens)
        kl, clipped = kl + float(sums["approx_kl"]), clipped + float(sums["clipfrac/policy"])
    advice = "update and scoring compute different logprobs: check temperature, masks and rows"
    return [
        Check("the ratio of the first minibatch is 1", math.sqrt(2 * max(kl, 0.0) / num_tokens), bounds.padded, advice),
        Check("nothing is clipped on the first minibatch", clipped / num_tokens, bounds.clipped, advice),
    ]


def _sampling_check(trainer: PPOTrainer, sequences: list[TokenSequence], keys: list[str], bounds: Bounds) -> Check:
    """Check that each token's random number picks it from the scored distribution."""
    rollout = trainer.config.rollout
    distances = []
    for sequence, key in zip(sequences, keys, strict=True):
        logits, ids = trainer.passes.response_logits([sequence]), torch.tensor(sequence.response_ids)
        numbers = uniforms(key, rollout.max_new_tokens)[: len(ids)]
        distances.append(distance_from_slice(logits, ids, numbers, rollout.temperature))
    neutral = rollout.top_p == 1
    advice = "sampling and scoring differ: check temperature and masks"
    if not neutral:
        advice = f"rollout.top_p={rollout.top_p:g} truncates the distribution; 1 does not"
    distance = float(torch.cat(distances).mean())
    name = "responses are drawn from the scored distribution"
    return Check(name, distance, bounds.drawn, advice, warns=not neutral)


def _text_checks(samples: Samples, tokenizers: Tokenizers) -> list[Check]:
    own, other = tokenizers.policy, tokenizers.reward
    if other is None:
        return []
    renderer, num_different = Renderer(other, tokenizers.data), 0
    for prompt, sequence in zip(samples.prompts, samples.sequences, strict=True):
        same_prompt = renderer.prompt_ids(json.loads(prompt.prompt_key)) == prompt.ids
        same_response = own.decode(sequence.response_ids) == other.decode(sequence.response_ids)
        text = own.decode(sequence.response_ids, skip_special_tokens=True)
        same_ids = own(text)["input_ids"] == other(text)["input_ids"]
        num_different += not (same_prompt and same_response and same_ids)
    advice = "policy and reward model need tokenizers that turn a text into the same ids"
    return [Check("policy and reward model read the same text", num_different, 0, advice)]


def _end_checks(trainer: PPOTrainer, sequences: list[TokenSequence], renderer: Renderer) -> list[Check]:
    ends, longest = trainer.passes.ends, trainer.config.rollout.max_new_tokens
    num_wrong = sum(
        any(token in ends.ids for token in sequence.response_ids[:-1])
        or (len(sequence.response_ids) < longest and not ends.ended(sequence))
        for sequence in sequences
    )
    name, not_an_end = "the chat template's end of turn ends a response", int(renderer.end_id not in ends.ids)
    advice = "add the template's end-of-turn token to the model's generation config as an eos_token_id"
    return [
        Check("responses end at their first EOS", num_wrong, 0, "the sampler continues after EOS, or stops before it"),
        Check(name, not_an_end, 0, advice, warns=True),
    ]


def _num_unfrozen(engine: FrozenEngine) -> int:
    with_gradient = sum(parameter.requires_grad for parameter in engine.module.parameters())
    return with_gradient + sum(module.training for module in engine.module.modules())
