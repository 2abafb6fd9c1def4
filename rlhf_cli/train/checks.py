"""What a run proves of its own models and data before the first update; docs/correctness.md argues the bounds.

Every figure is measured on a few probes: prompts of the run with responses that the policy samples, or rows of
preferences. All ranks look at the same probes, and the largest figure of any rank counts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_cli.algo.losses import policy_clipped
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.objectives import ValueInit
from rlhf_cli.config.sections import CheckConfig, DataConfig, DType, ModelConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.preferences import Ranking
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.tokens import Sequence as TokenSequence
from rlhf_cli.data.tokens import chunks, collate
from rlhf_cli.engine import distributed
from rlhf_cli.engine.zero import FrozenEngine
from rlhf_cli.report.checks import Check
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.rollout.embedded import uniforms
from rlhf_cli.train.batch import Rollout
from rlhf_cli.train.ppo import PPOTrainer
from rlhf_cli.train.reward import RewardTrainer

Item = TypeVar("Item")
_MARK = "ANSWER"


@dataclass(frozen=True)
class Bounds:
    """What rounding may do in one floating-point type."""

    same: float  # the same weights on the same batch: nats or score
    padded: float  # another batch around the same text: nats, mean over tokens
    score: float  # another batch around the same text: score, relative to scores above 1
    drawn: float  # probability between a draw and its token's interval, mean over tokens
    clipped: float  # share of tokens


# float32 rounds at 6e-8; a few hundred additions a layer and some dozen layers stay below 1e-4. bfloat16 rounds at
# 4e-3, so logits of size 16 are off by some hundredths; another batch shape adds in another order, and no test of one
# token can be sharp. Means over tokens can: a mistake in masks or positions moves them by tenths or more.
FLOAT32 = Bounds(same=1e-5, padded=1e-4, score=1e-3, drawn=1e-4, clipped=0.0)
BFLOAT16 = Bounds(same=1e-3, padded=0.05, score=0.15, drawn=0.01, clipped=0.02)


def bounds_of(*models: ModelConfig) -> Bounds:
    """Return the bounds for models that work together: the coarsest type counts."""
    return BFLOAT16 if any(model.dtype is DType.bfloat16 for model in models) else FLOAT32


@dataclass(frozen=True)
class TextSide:
    """How policy and reward model turn text into ids."""

    tokenizer: PreTrainedTokenizerBase
    reward_tokenizer: PreTrainedTokenizerBase
    data: DataConfig


def spread(items: Sequence[Item], lengths: Sequence[int], size: int) -> list[Item]:
    """Pick `size` items (all, if there are fewer) from the shortest to the longest, evenly."""
    order = sorted(range(len(items)), key=lambda index: lengths[index])
    size = min(size, len(items))
    last = max(size - 1, 1)
    return [items[order[place * (len(items) - 1) // last]] for place in range(size)]


def report_checks(check: Callable[[], list[Check]], config: CheckConfig, report: Reporter) -> None:
    """Make the checks and show them; raise InputError where one failed and check.strict holds."""
    start = time.perf_counter()
    checks = check()
    report.checks(checks, time.perf_counter() - start)
    failed = [check.name for check in checks if check.status == "FAIL"]
    if failed and config.strict:
        raise InputError(
            f"{len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}. Mend what the table says, "
            "or set check.strict=false to go on"
        )


@torch.no_grad()
def check_ppo(trainer: PPOTrainer, prompts: list[Prompt], texts: TextSide, bounds: Bounds) -> list[Check]:
    """Check the four models, the sampler and the texts of a run that has made no update; all ranks together."""
    probes = spread(prompts, [len(prompt.ids) for prompt in prompts], trainer.config.check.num_prompts)
    keys = [f"{trainer.config.run.seed}/check/{place}" for place in range(len(probes))]
    sequences = trainer.sampler.sample([probe.ids for probe in probes], keys)
    rollout, again = trainer.score(sequences), trainer.score(sequences)
    checks = [
        *_start_checks(trainer, rollout, again, sequences, bounds),
        *_padding_checks(trainer, rollout, sequences, bounds),
        _sampling_check(trainer, sequences, keys, bounds),
        _text_check(probes, sequences, texts),
        *_end_checks(trainer, sequences, texts.tokenizer),
    ]
    return _largest_of_all_ranks(checks)


def _start_checks(
    trainer: PPOTrainer, rollout: Rollout, again: Rollout, sequences: list[TokenSequence], bounds: Bounds
) -> list[Check]:
    models = trainer.models
    repeated = max(
        _largest(getattr(rollout, name) - getattr(again, name))
        for name in ("logprobs", "ref_logprobs", "values", "scores")
    )
    frozen = _num_unfrozen(models.reference) + _num_unfrozen(models.reward_model.engine)
    return [
        Check(
            "KL(policy || reference) is 0",
            _largest(rollout.logprobs - rollout.ref_logprobs),
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
    largest = 0.0
    for part in chunks(sequences, trainer.config.ppo.micro_batch_size):
        batch = collate(part, trainer.sampler.pad_id, trainer.device)
        values = models.value_model(**batch.model_inputs())[0]
        scores = models.reward_model.engine(**batch.model_inputs())[0]
        largest = max(largest, _largest((values - scores)[batch.attention_mask.bool()]))
    advice = "the reward model's head must be copied with its backbone, in the same dtype"
    return Check("the value model starts as the reward model", largest, bounds.same, advice)


def _padding_checks(
    trainer: PPOTrainer, rollout: Rollout, sequences: list[TokenSequence], bounds: Bounds
) -> list[Check]:
    size = max(1, min(trainer.config.ppo.micro_batch_size, len(sequences) // 2))  # other neighbours than in scoring
    alone = [trainer.response_logprobs([sequence])[0] for sequence in sequences]
    differences = torch.cat([(_row(rollout, place) - row).abs() for place, row in enumerate(alone)])
    scores = torch.cat([trainer.models.reward_model.score([sequence]).cpu() for sequence in sequences])
    ratios, clipped = [], []
    for places in chunks(list(range(len(sequences)))[::-1], size):
        rows = trainer.response_logprobs([sequences[place] for place in places])
        for place, row in zip(places, rows, strict=True):
            old = _row(rollout, place)
            ratios.append((row - old).exp() - 1)
            ones = torch.ones_like(row)
            clipped += [policy_clipped(row, old, advantages, *_clips(trainer)) for advantages in (ones, -ones)]
    return [
        Check(
            "logprobs do not change with padding and neighbours",
            float(differences.mean()),
            bounds.padded,
            "masks or positions are wrong, or the model mixes rows; see the model's attention implementation",
        ),
        Check(
            "scores do not change with padding and neighbours",
            _relative(rollout.scores[: len(scores)], scores),
            bounds.score,
            "the reward model's masks, positions or last token are wrong",
        ),
        Check(
            "the ratio of the first minibatch is 1",
            float(torch.cat(ratios).abs().mean()),
            bounds.padded,
            "the update's forward pass is not that of the scoring",
        ),
        Check(
            "nothing is clipped on the first minibatch",
            float(torch.cat(clipped).mean()),
            bounds.clipped,
            "the update's forward pass is not that of the scoring, or ppo.cliprange is within rounding",
        ),
    ]


def _sampling_check(trainer: PPOTrainer, sequences: list[TokenSequence], keys: list[str], bounds: Bounds) -> Check:
    """Each token must be the one that its uniform number picks from the distribution that scoring sees."""
    rollout = trainer.config.rollout
    distances = []
    for sequence, key in zip(sequences, keys, strict=True):
        logits = trainer.response_logits([sequence])[0]
        upper = torch.softmax(logits.float() / rollout.temperature, dim=-1).double().cumsum(dim=-1).cpu()
        ids = torch.tensor(sequence.response_ids)[:, None]
        high = upper.gather(1, ids).squeeze(1)
        low = torch.where(ids.squeeze(1) > 0, upper.gather(1, (ids - 1).clamp(min=0)).squeeze(1), 0.0)
        drawn = uniforms(key, rollout.max_new_tokens)[: len(sequence.response_ids)] * upper[:, -1]
        distances.append((low - drawn).clamp(min=0) + (drawn - high).clamp(min=0))
    neutral = rollout.top_p == 1
    advice = "sampling and scoring differ: look at temperature and masks"
    return Check(
        "responses are drawn from the scored distribution",
        float(torch.cat(distances).mean()),
        bounds.drawn,
        advice if neutral else f"rollout.top_p={rollout.top_p:g} cuts the distribution; 1 does not",
        warns=not neutral,
    )


def _text_check(probes: list[Prompt], sequences: list[TokenSequence], texts: TextSide) -> Check:
    own, other = texts.tokenizer, texts.reward_tokenizer
    renderer, num_different = Renderer(other, texts.data), 0
    for probe, sequence in zip(probes, sequences, strict=True):
        same_prompt = renderer.prompt_ids(json.loads(probe.prompt_key)) == probe.ids
        same_response = own.decode(sequence.response_ids) == other.decode(sequence.response_ids)
        answer = own.decode(sequence.response_ids, skip_special_tokens=True)
        same_ids = own(answer)["input_ids"] == other(answer)["input_ids"]
        num_different += not (same_prompt and same_response and same_ids)
    advice = "policy and reward model need tokenizers that turn a text into the same ids"
    return Check("policy and reward model read the same text", num_different, 0, advice)


def _end_checks(trainer: PPOTrainer, sequences: list[TokenSequence], tokenizer: PreTrainedTokenizerBase) -> list[Check]:
    ends, longest = trainer.sampler.end_ids, trainer.config.rollout.max_new_tokens
    num_wrong = sum(
        any(token in ends for token in sequence.response_ids[:-1])
        or (len(sequence.response_ids) < longest and not trainer.sampler.ended(sequence))
        for sequence in sequences
    )
    return [
        Check("responses end at their first EOS", num_wrong, 0, "the sampler goes on after EOS, or stops without one"),
        _template_check(tokenizer, ends),
    ]


def _template_check(tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]) -> Check:
    """The special token that the chat template writes after an answer should end a response."""
    wrong = 0
    if tokenizer.chat_template is not None:
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        tail = tokenizer.apply_chat_template(chat, tokenize=False).rpartition(_MARK)[2]
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        found = [token for token in tokenizer(tail, add_special_tokens=False)["input_ids"] if token in special]
        wrong = int(bool(found) and found[0] not in end_ids)
    advice = "add the template's end-of-turn token to the model's generation config as an eos_token_id"
    return Check("the chat template's end of turn ends a response", wrong, 0, advice, warns=True)


@torch.no_grad()
def check_rm(trainer: RewardTrainer, tokenizer: PreTrainedTokenizerBase, bounds: Bounds) -> list[Check]:
    """Check the model and the rows of a reward-model run that has made no update; all ranks together."""
    rows = spread(trainer.rows, [row.num_tokens for row in trainer.rows], trainer.config.check.num_prompts)
    together, again = trainer.scores(rows), trainer.scores(rows)
    alone = torch.cat([trainer.scores([_lone(row, place)]) for row in rows for place in range(len(row.answers))])
    eos = tokenizer.eos_token_id
    num_open = sum(answer.response_ids[-1] != eos for row in rows for answer in row.answers)
    num_early = sum(eos in answer.response_ids[:-1] for row in rows for answer in row.answers)
    checks = [
        Check(
            "scores do not change with padding and neighbours",
            _relative(together, alone),
            bounds.score,
            "masks, positions or the place of the last token are wrong",
        ),
        Check(
            "a second look gives the same numbers",
            _largest(together - again),
            bounds.same,
            "the model has dropout, noise or a routing that changes; switch it off",
        ),
        Check("every answer ends in EOS", num_open, 0, "the score is read there, in training and in PPO"),
        Check("no answer holds another EOS", num_early, 0, "PPO's responses end at the first one", warns=True),
        _template_check(tokenizer, frozenset({eos})),
        Check(
            "the loss does not start far above ln 2",
            trainer.mean_loss(rows) - math.log(2),
            1.0,
            "a fresh head starts near 0.69; are better and worse swapped, or is the model a trained one?",
            warns=True,
        ),
    ]
    return _largest_of_all_ranks(checks)


def _lone(row: Ranking, place: int) -> Ranking:
    return replace(row, answers=(row.answers[place],))


def _row(rollout: Rollout, place: int) -> Tensor:
    return rollout.logprobs[place, : len(rollout.sequences[place].response_ids)]


def _clips(trainer: PPOTrainer) -> tuple[float, float]:
    ppo = trainer.config.ppo
    return ppo.cliprange, ppo.cliprange if ppo.cliprange_high is None else ppo.cliprange_high


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _relative(scores: Tensor, others: Tensor) -> float:
    """Largest difference of two readings, in units of the scores' own size where that is above 1."""
    return _largest(scores - others) / max(1.0, _largest(scores))


def _num_unfrozen(engine: FrozenEngine) -> int:
    with_gradient = sum(parameter.requires_grad for parameter in engine.module.parameters())
    return with_gradient + sum(module.training for module in engine.module.modules())


def _largest_of_all_ranks(checks: list[Check]) -> list[Check]:
    figures = distributed.gather_all([check.figure for check in checks])
    return [
        replace(check, figure=max(column, key=lambda figure: math.inf if math.isnan(figure) else figure))
        for check, column in zip(checks, zip(*figures, strict=True), strict=True)
    ]
