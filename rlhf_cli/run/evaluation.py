"""Answers to held-out prompts before, during and after training, and what they say when paired."""

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
_DIGITS = 4  # of the KL of a token, after the point


@dataclass(frozen=True)
class Answer:
    """One answer of the policy to a held-out prompt; a line of samples.jsonl."""

    stage: str  # before, during or after
    step: int  # steps of training done
    mode: str  # greedy or sampled
    prompt: str
    response: str
    score: float
    num_tokens: int
    ended: bool
    gold_score: float | None = None  # what the second reward model says
    source_scores: dict[str, float] = field(default_factory=dict)  # what each source of a list says, by name
    tokens: list[str] = field(default_factory=list)  # the response in pieces; none before training
    kl: list[float] = field(default_factory=list)  # log p - log q of each piece, nats


@dataclass(frozen=True)
class Judges:
    """What is asked of an answer."""

    judging: RewardEnsemble
    gold: RewardModel | None  # which training never sees
    token_kl: Callable[[list[TokenSequence]], list[Tensor]]  # log p - log q of each response token, [T] a sequence


class Evaluator:
    """Asks the policy the same held-out prompts again and again; sampled answers draw the same numbers each time.

    Nothing that training draws from is touched: the numbers come from keys of their own.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        sampler: RolloutEngine,
        ends: EndTokens,
        judges: Judges,
        renderer: Renderer,
        config: TrainPPOConfig,
    ) -> None:
        self.prompts = prompts
        self.sampler = sampler
        self.ends = ends
        self.judges = judges
        self.renderer = renderer
        self.config = config

    def ask(self, stage: str, step: int) -> list[Answer]:
        """Return greedy and sampled answers to every prompt, the same list on every rank; all ranks together."""
        return [answer for mode in MODES for answer in self._ask(stage, step, mode)] if self.prompts else []

    def _ask(self, stage: str, step: int, mode: str) -> list[Answer]:
        # every rank makes the same number of forward passes
        mine = distributed.share(distributed.pad_to_ranks(list(range(len(self.prompts)))))
        keys = [f"{self.config.run.seed}/held-out/{place}" for place in mine]
        sequences = self.sampler.sample([self.prompts[place].ids for place in mine], keys, greedy=mode == "greedy")
        judging, gold_model = self.judges.judging, self.judges.gold
        said = judging.scores([self.prompts[place] for place in mine], sequences, self._by_row)
        if judging.failed:
            raise next(iter(judging.failed.values()))
        names = judging.weighted_sum.names if self.config.reward else []
        of_sources = [dict(zip(names, row, strict=False)) for row in said.tolist()]
        gold: list[float] | list[None] = [None] * len(mine)
        if gold_model is not None:
            gold = [float(score) for score in self._by_row(gold_model.engine, sequences, gold_model.score)]
        answers = [
            Answer(
                stage=stage,
                step=step,
                mode=mode,
                prompt=self.prompts[place].text,
                response=self.renderer.response_text(sequence.response_ids),
                score=score,
                num_tokens=len(sequence.response_ids),
                ended=self.ends.ended(sequence),
                gold_score=of_gold,
                source_scores=scores,
                tokens=tokens,
                kl=kl,
            )
            for place, sequence, score, scores, of_gold, (tokens, kl) in zip(
                mine,
                sequences,
                judging.weighted_sum(said).tolist(),
                of_sources,
                gold,
                self._pieces(stage, sequences),
                strict=True,
            )
        ]
        return flatten(distributed.gather_all(answers))[: len(self.prompts)]

    def _by_row(
        self, engine: FrozenEngine, sequences: list[TokenSequence], read: Callable[[list[TokenSequence]], Tensor]
    ) -> list[Tensor]:
        found: list[Tensor] = []
        with engine.gathered(self.config.rollout.gather):
            for part in chunks(sequences, self.config.rollout.micro_batch_size):
                found += read(part).cpu()
        return found

    def _pieces(self, stage: str, sequences: list[TokenSequence]) -> list[tuple[list[str], list[float]]]:
        """The text of every response in pieces, with the KL of each; before training it is 0 everywhere."""
        if stage == BEFORE:
            return [([], [])] * len(sequences)
        kls = self.judges.token_kl(sequences)
        return [
            self.renderer.pieces(sequence.response_ids, kl.tolist())
            for sequence, kl in zip(sequences, kls, strict=True)
        ]


class HeldOut:
    """The answers of one run: asked, told and compared with those before training."""

    def __init__(self, book: Evaluator, report: Reporter) -> None:
        self.book = book
        self.report = report
        self._before: list[Answer] = []
        self._newest: list[Answer] = []
        self._logs = (
            book.config.eval.every_steps > 0
        )  # eval/..., a series that starts before training and ends after it

    def before(self) -> list[Answer]:
        """Ask the policy as it is before training: it is the reference; all ranks together, as all that follows."""
        self.report.say(f"answering {len(self.book.prompts)} held-out prompts, greedily and sampled")
        PROGRESS.enter("answers before training")
        self._before = self.book.ask(BEFORE, 0)
        return self._before

    def tell_before(self, is_new: bool) -> None:
        """Write down the answers before training, unless an earlier start of the run has."""
        self.report.samples_once(BEFORE, records(self._before))
        if is_new and self._logs:
            self.report.log_eval(0, metrics(self._before, self._before))

    def during(self, step: int) -> dict[str, float]:
        """Ask again after a step; return and log eval/..., {} where a source failed whose failures are skipped."""
        try:
            with self.report.evaluating():
                self._newest = self.book.ask(DURING, step)
        except RewardError as error:
            self._forgive(error, step)
            return {}
        found = metrics(self._before, self._newest)
        self.report.samples(records(self._newest))
        self.report.log_eval(step, found)
        return found

    def make_up(self, step: int) -> None:
        """Evaluate after the step that a resumed run goes on from, where a failure has left that out."""
        every = self.book.config.eval.every_steps
        due = every and step and step % every == 0
        if due and not distributed.broadcast(self.report.has_logged(step, "eval/score")):
            self.during(step)

    def _forgive(self, error: RewardError, step: int) -> None:
        """Tell of a failure that is to be skipped; raise another one again."""
        if error not in self.book.judges.judging.failed.values():
            raise error
        self.report.warn(f"no evaluation after step {step}: {error}")

    def after(self, step: int) -> list[Answer]:
        """Ask once more after the last step, unless that has just been done; as `during`, [] where a source failed."""
        PROGRESS.enter("answers after training")
        if self._newest and self._newest[0].step == step:
            answers = [replace(answer, stage=AFTER) for answer in self._newest]
        else:
            try:
                answers = self.book.ask(AFTER, step)
            except RewardError as error:
                self._forgive(error, step)
                return []
            if self._logs and not self.report.has_logged(step, "eval/score"):
                self.report.log_eval(step, metrics(self._before, answers))
        self.report.samples_once(AFTER, records(answers))
        return answers


def records(answers: Sequence[Answer]) -> list[dict[str, object]]:
    """Return answers as lines of samples.jsonl."""
    return [{**asdict(answer), "kl": [round(value, _DIGITS) for value in answer.kl]} for answer in answers]


def metrics(before: Sequence[Answer], now: Sequence[Answer]) -> dict[str, float]:
    """Return eval/...: mean scores, win rates against the answers before training, KL, lengths and EOS rates."""
    found: dict[str, float] = {}
    for mode, prefix in (("sampled", "eval/"), ("greedy", "eval/greedy_")):
        first, last = _of(before, mode), _of(now, mode)
        if not last:
            continue
        found |= {
            f"{prefix}score": _mean([one.score for one in last]),
            **_named(f"{prefix}win_rate", _win_rate([(a.score, b.score) for a, b in zip(first, last, strict=True)])),
            f"{prefix}response_length": _mean([one.num_tokens for one in last]),
            f"{prefix}eos_rate": _mean([one.ended for one in last]),
        }
        pairs = _gold_pairs(first, last)
        if pairs:
            found[f"{prefix}gold_score"] = _mean([b for _, b in pairs])
            found |= _named(f"{prefix}gold_win_rate", _win_rate(pairs))
        for name in last[0].source_scores:
            found[f"{prefix}reward/{name}"] = _mean([one.source_scores[name] for one in last])
        if mode == "sampled":  # a greedy answer estimates no KL
            found["eval/kl"] = _mean([sum(one.kl) for one in last])
    return found


def compare(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Return per mode the mean scores, their paired difference with its 95 % interval, lengths and EOS rates."""
    figures = {}
    for mode in MODES:
        first, last = _of(before, mode), _of(after, mode)
        if first and last:
            figures[mode] = {
                "num_prompts": len(first),
                **_compared("", [(a.score, b.score) for a, b in zip(first, last, strict=True)]),
                **_compared("gold_", _gold_pairs(first, last)),
                "response_length_before": _mean([answer.num_tokens for answer in first]),
                "response_length_after": _mean([answer.num_tokens for answer in last]),
                "eos_rate_before": _mean([answer.ended for answer in first]),
                "eos_rate_after": _mean([answer.ended for answer in last]),
            }
    return figures


def _compared(prefix: str, pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return what scores before and after say; {} without any."""
    if not pairs:
        return {}
    gain: Interval = bootstrap_mean([b - a for a, b in pairs])
    return {
        f"{prefix}score_before": _mean([a for a, _ in pairs]),
        f"{prefix}score_after": _mean([b for _, b in pairs]),
        **{f"{prefix}difference_{name}": value for name, value in asdict(gain).items()},
        **_named(f"{prefix}win_rate", _win_rate(pairs)),
    }


def _gold_pairs(first: Sequence[Answer], last: Sequence[Answer]) -> list[tuple[float, float]]:
    pairs = ((a.gold_score, b.gold_score) for a, b in zip(first, last, strict=True))
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _of(answers: Sequence[Answer], mode: str) -> list[Answer]:
    return [answer for answer in answers if answer.mode == mode]


def _win_rate(pairs: Sequence[tuple[float, float]]) -> Interval:
    """Share of pairs whose second is higher, a half where they are equal."""
    return wilson(sum(0.5 if a == b else float(b > a) for a, b in pairs), len(pairs))


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _mean(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())
