"""The checks of a PPO run: its four models, the sampler and the texts, on responses that the policy samples."""

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
from rlhf_cli.train.batch import Rollout
from rlhf_cli.train.ppo import PPOTrainer

_LOGIT = 16.0  # that the bounds of bfloat16 are for, at temperature 1


@dataclass(frozen=True)
class TextSide:
    """How policy and reward model turn text into ids."""

    tokenizer: PreTrainedTokenizerBase
    reward_tokenizer: PreTrainedTokenizerBase | None  # None without a reward model that reads the policy's tokens
    data: DataConfig


@torch.no_grad()
def check_ppo(trainer: PPOTrainer, prompts: Sequence[Prompt], texts: TextSide, bounds: Bounds) -> list[Check]:
    """Check the four models, the sampler and the texts of a run that has made no update; all ranks together."""
    probes = spread(prompts, [len(prompt.ids) for prompt in prompts], trainer.config.check.num_prompts)
    keys = [f"{trainer.config.run.seed}/check/{place}" for place in range(len(probes))]
    # ranks could part where rounding decides between two tokens; from here all look at the same ones
    sequences = distributed.broadcast(trainer.sampler.sample([probe.ids for probe in probes], keys))
    rollout, again = (_scored(trainer, sequences, probes) for _ in range(2))
    bounds = _for_logits(bounds, trainer, sequences)
    checks = [
        *_start_checks(trainer, rollout, again, sequences, bounds),
        *_padding_checks(trainer, sequences, bounds),
        *_source_checks(trainer, (rollout, again), probes, sequences),
        *_update_checks(trainer, rollout, sequences, bounds),
        _sampling_check(trainer, sequences, keys, bounds),
        *_text_checks(probes, sequences, texts),
        *_end_checks(trainer, sequences, Renderer(texts.tokenizer, texts.data)),
    ]
    return worst_of_all_ranks(checks)


def _scored(trainer: PPOTrainer, sequences: list[TokenSequence], probes: list[Prompt]) -> Rollout:
    judging = trainer.models.judging
    try:
        rollout = trainer.score(sequences, probes)
    except RewardError as error:
        raise as_input_error(error) from error
    if judging.failed:
        raise as_input_error(next(iter(judging.failed.values())))
    return rollout


def _for_logits(bounds: Bounds, trainer: PPOTrainer, sequences: list[TokenSequence]) -> Bounds:
    """Widen the bounds of bfloat16 to the logits that the run has.

    With 8 bits a logit from 16 on is a multiple of 1/8, from 32 on of 1/4, and the temperature divides it: where a
    batch of another shape rounds it the other way, its token's log-probability is that far off.
    """
    if bounds is not BFLOAT16:
        return bounds
    size = float(trainer.views.response_logits(sequences[:1]).float().abs().amax(dim=1).mean())
    coarser = max(1.0, size / _LOGIT / trainer.config.rollout.temperature)
    # beyond the clip range lies a share of the tokens that grows faster than the spread does
    return replace(bounds, padded=bounds.padded * coarser, clipped=bounds.clipped * coarser**2)


def _start_checks(
    trainer: PPOTrainer, rollout: Rollout, again: Rollout, sequences: list[TokenSequence], bounds: Bounds
) -> list[Check]:
    models = trainer.models
    of_models = [place for place, source in enumerate(models.judging.sources) if not source.is_outside]
    repeated = largest(
        *(getattr(rollout, name) - getattr(again, name) for name in ("logprobs", "ref_logprobs", "values")),
        (rollout.source_scores - again.source_scores)[:, of_models],
    )
    frozen = sum(_num_unfrozen(engine) for engine in (models.reference, *models.judging.engines.values()))
    return [
        Check(
            "KL(policy || reference) is 0",
            largest(rollout.logprobs - rollout.ref_logprobs),
            bounds.same,
            "the reference must start from the policy's weights and dtype",
        ),
        Check(
            "a second look gives the same numbers",
            repeated,
            bounds.same,
            "a model has dropout, noise or a routing that changes; switch it off",
        ),
        _value_check(trainer, sequences, bounds),
        Check("reference and reward model are frozen", frozen, 0, "parameters with gradients, or layers in train mode"),
    ]


def _value_check(trainer: PPOTrainer, sequences: list[TokenSequence], bounds: Bounds) -> Check:
    models = trainer.models
    if trainer.config.value_model.init is ValueInit.policy:
        return Check(
            "the value model starts from the policy's backbone",
            models.value_model.largest_difference(models.policy),
            0,
            "the weights of policy and value model differ beyond their heads",
        )
    reward_model, differences = models.judging.reward_model, []
    assert reward_model is not None  # TrainPPOConfig.check_together
    for part in chunks(sequences, trainer.config.ppo.micro_batch_size):
        batch = collate(part, trainer.ends.pad_id, trainer.device)
        values = models.value_model(batch.input_ids, packing=batch.packing)[0]
        scores = reward_model.engine(batch.input_ids, packing=batch.packing)[0]
        differences.append(batch.before_each_response_token(values - scores))
    advice = "the reward model's head must be copied with its backbone, in the same dtype"
    return Check("the value model starts as the reward model", largest(*differences), bounds.same, advice)


def _padding_checks(trainer: PPOTrainer, sequences: list[TokenSequence], bounds: Bounds) -> list[Check]:
    """Read every text alone, and in a batch in which prompts and responses are of different lengths."""
    mixed = [_cut(sequence) if place % 2 else sequence for place, sequence in enumerate(sequences)]
    parts = chunks(mixed, max(2, trainer.config.ppo.micro_batch_size))
    together = torch.cat([row for part in parts for row in trainer.views.response_logprobs(part)])
    alone = torch.cat([trainer.views.response_logprobs([sequence])[0] for sequence in mixed])
    checks = [
        Check(
            "logprobs do not change with padding and neighbours",
            float((together - alone).abs().mean()),
            bounds.padded,
            "masks or positions are wrong, or the model mixes rows; see the model's attention implementation",
        )
    ]
    reward_model = trainer.models.judging.reward_model
    if reward_model is None:
        return checks
    scores = torch.cat([reward_model.score(part).cpu() for part in parts])
    alone_scores = torch.cat([reward_model.score([sequence]).cpu() for sequence in mixed])
    return [
        *checks,
        Check(
            "scores do not change with padding and neighbours",
            relative(scores, alone_scores),
            bounds.score,
            "the reward model's masks, positions or last token are wrong",
        ),
    ]


def _source_checks(
    trainer: PPOTrainer, looks: tuple[Rollout, Rollout], probes: list[Prompt], sequences: list[TokenSequence]
) -> list[Check]:
    """Ask models with tokenizers of their own about every text alone; compare what the others said twice."""
    judging, checks = trainer.models.judging, []
    start = distributed.rank() * len(sequences)  # a look has those of all ranks
    for place, source in enumerate(judging.sources):
        said, repeated = (look.source_scores[start : start + len(sequences), place] for look in looks)
        own = source.own_model("reward")
        if own is not None:
            texts = [judging.to_exchange(*both) for both in zip(probes, sequences, strict=True)]
            alone = torch.tensor([judging.classifiers[source.name].score([text])[0] for text in texts])
            name = f"scores of {source.name} do not change with padding and neighbours"
            advice = "its masks, positions or last token are wrong; see reward[].whole_turn and its chat template"
            checks.append(Check(name, relative(said, alone), bounds_of(own).score, advice))
        elif source.is_outside and not source.random:
            name = f"{source.name} says the same again"
            advice = f"mend the source, or declare it: random: true in the source {source.name} of reward"
            checks.append(Check(name, relative(said, repeated), BFLOAT16.score, advice))
    return checks


def _update_checks(
    trainer: PPOTrainer, rollout: Rollout, sequences: list[TokenSequence], bounds: Bounds
) -> list[Check]:
    """Run the update's own objective on the probes, in other micro-batches than the scoring's."""
    batch = trainer.estimate(rollout)
    size = max(1, min(trainer.config.ppo.micro_batch_size, len(sequences) // 2))
    num_tokens = sum(len(sequence.response_ids) for sequence in sequences)
    kl = clipped = 0.0
    for places in chunks(list(range(len(sequences)))[::-1], size):
        tokens = collate([sequences[place] for place in places], trainer.ends.pad_id, trainer.device)
        part = batch.rows(places, tokens.response_mask, trainer.device)
        _, sums = trainer.policy_objective(part, tokens)
        kl, clipped = kl + float(sums["approx_kl"]), clipped + float(sums["clipfrac/policy"])
    advice = "the update computes other logprobs than the scoring: look at temperature, masks, rows"
    return [
        Check("the ratio of the first minibatch is 1", math.sqrt(2 * max(kl, 0.0) / num_tokens), bounds.padded, advice),
        Check("nothing is clipped on the first minibatch", clipped / num_tokens, bounds.clipped, advice),
    ]


def _cut(sequence: TokenSequence) -> TokenSequence:
    """The first half of a response, as if it had been cut off."""
    return replace(sequence, response_ids=sequence.response_ids[: (len(sequence.response_ids) + 1) // 2])


def _sampling_check(trainer: PPOTrainer, sequences: list[TokenSequence], keys: list[str], bounds: Bounds) -> Check:
    """Each token must be the one that its uniform number picks from the distribution that scoring sees."""
    rollout = trainer.config.rollout
    distances = []
    for sequence, key in zip(sequences, keys, strict=True):
        logits, ids = trainer.views.response_logits([sequence]), torch.tensor(sequence.response_ids)
        numbers = uniforms(key, rollout.max_new_tokens)[: len(ids)]
        distances.append(distance_from_slice(logits, ids, numbers, rollout.temperature))
    neutral = rollout.top_p == 1
    advice = "sampling and scoring differ: look at temperature and masks"
    return Check(
        "responses are drawn from the scored distribution",
        float(torch.cat(distances).mean()),
        bounds.drawn,
        advice if neutral else f"rollout.top_p={rollout.top_p:g} cuts the distribution; 1 does not",
        warns=not neutral,
    )


def _text_checks(probes: list[Prompt], sequences: list[TokenSequence], texts: TextSide) -> list[Check]:
    own, other = texts.tokenizer, texts.reward_tokenizer
    if other is None:
        return []
    renderer, num_different = Renderer(other, texts.data), 0
    for probe, sequence in zip(probes, sequences, strict=True):
        same_prompt = renderer.prompt_ids(json.loads(probe.prompt_key)) == probe.ids
        same_response = own.decode(sequence.response_ids) == other.decode(sequence.response_ids)
        answer = own.decode(sequence.response_ids, skip_special_tokens=True)
        same_ids = own(answer)["input_ids"] == other(answer)["input_ids"]
        num_different += not (same_prompt and same_response and same_ids)
    advice = "policy and reward model need tokenizers that turn a text into the same ids"
    return [Check("policy and reward model read the same text", num_different, 0, advice)]


def _end_checks(trainer: PPOTrainer, sequences: list[TokenSequence], renderer: Renderer) -> list[Check]:
    ends, longest = trainer.ends.ids, trainer.config.rollout.max_new_tokens
    num_wrong = sum(
        any(token in ends for token in sequence.response_ids[:-1])
        or (len(sequence.response_ids) < longest and not trainer.ends.ended(sequence))
        for sequence in sequences
    )
    return [
        Check("responses end at their first EOS", num_wrong, 0, "the sampler goes on after EOS, or stops without one"),
        Check(
            "the chat template's end of turn ends a response",
            int(renderer.end_id not in ends),
            0,
            "add the template's end-of-turn token to the model's generation config as an eos_token_id",
            warns=True,
        ),
    ]


def _num_unfrozen(engine: FrozenEngine) -> int:
    with_gradient = sum(parameter.requires_grad for parameter in engine.module.parameters())
    return with_gradient + sum(module.training for module in engine.module.modules())
