"""Evaluation of a policy on held-out prompts before, during and after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from rlhf_cli.config.errors import RewardError
from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.token_batches import EndTokens, TokenSequence, chunks, flatten
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import FrozenEngine
from rlhf_cli.report.intervals import Interval, bootstrap_mean, wilson
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.rewards.ensemble import RewardEnsemble
from rlhf_cli.rewards.reward_model import RewardModel
from rlhf_cli.rollout import RolloutEngine
from rlhf_cli.system.watchdog import PROGRESS

MODES = ("greedy", "sampled")
BEFORE, DURING, AFTER = "before", "during", "after"
_DIGITS = 4  # after the point, of a token's KL


@dataclass(frozen=True)
class HeldOutResponse:
    """One response of the policy to a held-out prompt; a line of samples.jsonl."""

    stage: str  # before, during or after
    step: int  # training steps completed
    mode: str  # greedy or sampled
    prompt: str
    response: str
    score: float
    num_tokens: int
    ended: bool
    gold_score: float | None = None  # from the gold reward model
    source_scores: dict[str, float] = field(default_factory=dict)  # by reward source
    tokens: list[str] = field(default_factory=list)  # the response in pieces; empty before training
    kl: list[float] = field(default_factory=list)  # log p - log q of each piece, nats


@dataclass(frozen=True)
class Scorers:
    """What scores held-out responses."""

    rewards: RewardEnsemble
    gold: RewardModel | None  # never used in training
    # log p - log q of each response token, [T] per sequence
    token_kl: Callable[[list[TokenSequence]], list[Tensor]]


@dataclass
class Evaluator:
    """Evaluates the policy on the same held-out prompts during a run, and logs the results.

    Sampled responses draw the same random numbers each time, which training does not use. All
    methods are collective.
    """

    config: TrainPPOConfig
    prompts: Sequence[Prompt]
    sampler: RolloutEngine
    ends: EndTokens
    scorers: Scorers
    renderer: Renderer
    report: Reporter
    _before: list[HeldOutResponse] = field(default_factory=list, init=False)
    _newest: list[HeldOutResponse] = field(default_factory=list, init=False)

    @property
    def _logs_series(self) -> bool:
        """Whether eval/... is logged before, during and after training."""
        return self.config.eval.every_steps > 0

    def before(self) -> list[HeldOutResponse]:
        """Evaluate the policy before training, when it is the reference."""
        self.report.say(f"evaluating {len(self.prompts)} held-out prompts, greedy and sampled")
        PROGRESS.enter("evaluation before training")
        self._before = self.respond(BEFORE, 0)
        return self._before

    def log_before(self, is_new: bool) -> None:
        """Log the responses before training, unless an earlier start of the run did."""
        self.report.samples_once(BEFORE, records(self._before))
        if is_new and self._logs_series:
            self.report.log_eval(0, metrics(self._before, self._before))

    def during(self, step: int) -> dict[str, float]:
        """Evaluate after a step; log and return eval/..., or {} if a failure is skipped."""
        try:
            with self.report.evaluating():
                self._newest = self.respond(DURING, step)
        except RewardError as error:
            self._skip_or_raise(error, step)
            return {}
        found = metrics(self._before, self._newest)
        self.report.samples(records(self._newest))
        self.report.log_eval(step, found)
        return found

    def repeat_missed(self, step: int) -> None:
        """Evaluate after the step at which a run resumes, if a failure prevented that before."""
        every = self.config.eval.every_steps
        due = every and step and step % every == 0
        if due and not distributed.broadcast(self.report.has_logged(step, "eval/score")):
            self.during(step)

    def after(self, step: int) -> list[HeldOutResponse]:
        """Evaluate after the last step, or reuse its evaluation; [] if a failure is skipped."""
        PROGRESS.enter("evaluation after training")
        if self._newest and self._newest[0].step == step:
            responses = [replace(response, stage=AFTER) for response in self._newest]
        else:
            try:
                responses = self.respond(AFTER, step)
            except RewardError as error:
                self._skip_or_raise(error, step)
                return []
            if self._logs_series and not self.report.has_logged(step, "eval/score"):
                self.report.log_eval(step, metrics(self._before, responses))
        self.report.samples_once(AFTER, records(responses))
        return responses

    def _skip_or_raise(self, error: RewardError, step: int) -> None:
        """Warn of a failure that the source's options skip; raise any other."""
        if error not in self.scorers.rewards.failed.values():
            raise error
        self.report.warn(f"the evaluation after step {step} is skipped: {error}")

    def respond(self, stage: str, step: int) -> list[HeldOutResponse]:
        """Return scored greedy and sampled responses to all prompts, the same on every rank."""
        return [one for mode in MODES for one in self._respond(stage, step, mode)] if self.prompts else []

    def _respond(self, stage: str, step: int, mode: str) -> list[HeldOutResponse]:
        # padded, so that every rank makes the same number of forward passes
        mine = distributed.share(distributed.pad_to_ranks(list(range(len(self.prompts)))))
        prompts = [self.prompts[index] for index in mine]
        keys = [f"{self.config.run.seed}/held-out/{index}" for index in mine]
        sequences = self.sampler.sample([prompt.ids for prompt in prompts], keys, greedy=mode == "greedy")
        rewards = self.scorers.rewards
        source_scores = rewards.scores(prompts, sequences, self._map_micro_batches)
        if rewards.failed:
            raise next(iter(rewards.failed.values()))
        scores = rewards.weighted_sum(source_scores).tolist()
        names = rewards.weighted_sum.names if self.config.reward else []
        gold = self.scorers.gold
        gold_scores: list[float] | list[None] = [None] * len(sequences)
        if gold is not None:
            gold_scores = [float(score) for score in self._map_micro_batches(gold.engine, sequences, gold.score)]
        pieces = self._pieces(stage, sequences)
        responses = [
            HeldOutResponse(
                stage=stage,
                step=step,
                mode=mode,
                prompt=prompts[row].text,
                response=self.renderer.response_text(sequence.response_ids),
                score=scores[row],
                num_tokens=len(sequence.response_ids),
                ended=self.ends.ended(sequence),
                gold_score=gold_scores[row],
                source_scores=dict(zip(names, source_scores[row].tolist(), strict=False)),
                tokens=pieces[row][0],
                kl=pieces[row][1],
            )
            for row, sequence in enumerate(sequences)
        ]
        return flatten(distributed.gather_all(responses))[: len(self.prompts)]

    def _map_micro_batches(
        self, engine: FrozenEngine, sequences: list[TokenSequence], read: Callable[[list[TokenSequence]], Tensor]
    ) -> list[Tensor]:
        found: list[Tensor] = []
        with engine.gathered(self.config.rollout.gather):
            for part in chunks(sequences, self.config.rollout.micro_batch_size):
                found += read(part).cpu()
        return found

    def _pieces(self, stage: str, sequences: list[TokenSequence]) -> list[tuple[list[str], list[float]]]:
        """Return the pieces of every response and their KL; none before training, when it is 0."""
        if stage == BEFORE:
            return [([], [])] * len(sequences)
        token_kl = self.scorers.token_kl(sequences)
        return [
            self.renderer.pieces(sequence.response_ids, kl.tolist())
            for sequence, kl in zip(sequences, token_kl, strict=True)
        ]


def records(responses: Sequence[HeldOutResponse]) -> list[dict[str, object]]:
    """Return responses as records for samples.jsonl."""
    return [{**asdict(one), "kl": [round(value, _DIGITS) for value in one.kl]} for one in responses]


def metrics(before: Sequence[HeldOutResponse], now: Sequence[HeldOutResponse]) -> dict[str, float]:
    """Return eval/...; win rates are against the responses before training."""
    found: dict[str, float] = {}
    for mode, prefix in (("sampled", "eval/"), ("greedy", "eval/greedy_")):
        first, last = _in_mode(before, mode), _in_mode(now, mode)
        if not last:
            continue
        found |= {
            f"{prefix}score": _mean([one.score for one in last]),
            **_with_interval(f"{prefix}win_rate", _win_rate(_score_pairs(first, last))),
            f"{prefix}response_length": _mean([one.num_tokens for one in last]),
            f"{prefix}eos_rate": _mean([one.ended for one in last]),
        }
        pairs = _gold_pairs(first, last)
        if pairs:
            found[f"{prefix}gold_score"] = _mean([b for _, b in pairs])
            found |= _with_interval(f"{prefix}gold_win_rate", _win_rate(pairs))
        for name in last[0].source_scores:
            found[f"{prefix}reward/{name}"] = _mean([one.source_scores[name] for one in last])
        if mode == "sampled":  # greedy responses give no estimate of the KL
            found["eval/kl"] = _mean([sum(one.kl) for one in last])
    return found


def compare(before: Sequence[HeldOutResponse], after: Sequence[HeldOutResponse]) -> dict[str, dict[str, float]]:
    """Return means by mode, and the paired difference of the scores with its 95 % interval."""
    figures = {}
    for mode in MODES:
        first, last = _in_mode(before, mode), _in_mode(after, mode)
        if first and last:
            figures[mode] = {
                "num_prompts": len(first),
                **_comparison("", _score_pairs(first, last)),
                **_comparison("gold_", _gold_pairs(first, last)),
                "response_length_before": _mean([one.num_tokens for one in first]),
                "response_length_after": _mean([one.num_tokens for one in last]),
                "eos_rate_before": _mean([one.ended for one in first]),
                "eos_rate_after": _mean([one.ended for one in last]),
            }
    return figures


def _comparison(prefix: str, pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Compare pairs of scores before and after; return {} without pairs."""
    if not pairs:
        return {}
    gain: Interval = bootstrap_mean([b - a for a, b in pairs])
    return {
        f"{prefix}score_before": _mean([a for a, _ in pairs]),
        f"{prefix}score_after": _mean([b for _, b in pairs]),
        **{f"{prefix}difference_{name}": value for name, value in asdict(gain).items()},
        **_with_interval(f"{prefix}win_rate", _win_rate(pairs)),
    }


def _score_pairs(first: Sequence[HeldOutResponse], last: Sequence[HeldOutResponse]) -> list[tuple[float, float]]:
    return [(a.score, b.score) for a, b in zip(first, last, strict=True)]


def _gold_pairs(first: Sequence[HeldOutResponse], last: Sequence[HeldOutResponse]) -> list[tuple[float, float]]:
    pairs = ((a.gold_score, b.gold_score) for a, b in zip(first, last, strict=True))
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _in_mode(responses: Sequence[HeldOutResponse], mode: str) -> list[HeldOutResponse]:
    return [one for one in responses if one.mode == mode]


def _win_rate(pairs: Sequence[tuple[float, float]]) -> Interval:
    """Return the share of pairs whose second score is higher; ties count as a half."""
    return wilson(sum(0.5 if a == b else float(b > a) for a, b in pairs), len(pairs))


def _with_interval(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _mean(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())
