"""`rlhf evaluate`: a policy's answers beside those of a reference, scored by a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhf_cli.algo.kl import kl_k1
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.report.intervals import Interval, bootstrap_mean, wilson
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.system.terminal import console
from rlhf_cli.system.text import printable
from rlhf_cli.use.cli_options import Loading, Rewarding, Rows, Sampling
from rlhf_cli.use.input_rows import prompts
from rlhf_cli.use.response_scorer import ResponseScorer
from rlhf_cli.use.responses import Asked, as_asked, ask, exchanges, load_policy, write_lines
from rlhf_cli.use.trained_policy import Policy
from rlhf_cli.use.trained_runs import Role, Trained, find

_MADE_UP = "A made-up answer, to try the reward."


@dataclass(frozen=True)
class Evaluate:
    """What was asked for."""

    policy: str
    against: str | None  # None: what the policy's run started from
    rows: Rows
    rewarding: Rewarding
    num: int  # answers to every prompt
    out: Path | None
    loading: Loading
    sampling: Sampling


@dataclass(frozen=True)
class Side:
    """One policy's answers, those of one prompt together, and their scores."""

    asked: list[Asked]
    scores: list[float]

    def num_tokens(self) -> float:
        """Mean tokens of an answer, its end token included."""
        return sum(one.answer.num_tokens for one in self.asked) / len(self.asked)

    def eos_rate(self) -> float:
        """Share of answers that end by themselves."""
        return sum(one.answer.ended for one in self.asked) / len(self.asked)


@dataclass(frozen=True)
class Figures:
    """What is said of two policies. Prompts are what is drawn at random: answers to one of them count as one."""

    score: float
    reference_score: float
    difference: Interval  # paired
    win_rate: Interval  # ties half
    kl: Interval | None  # nats a response


def run(wanted: Evaluate) -> None:
    """Answer all prompts with both policies, score the answers, show how the policies differ."""
    asked_for = prompts(wanted.rows, "--prompts")
    judge = ResponseScorer.of(wanted.rewarding, "--reward")
    try:
        policy = load_policy(wanted.policy, wanted.loading, wanted.sampling)
        reference = Policy(reference_of(wanted), policy.rollout, policy.device, key="reference")
        try_reward(judge, policy, asked_for)
        sides = []
        for one in (policy, reference):
            asked = ask(one, asked_for, wanted.num, wanted.sampling)
            sides.append(Side(asked, judge.score(exchanges(one, asked))))
    finally:
        judge.close()
    kls, note = (None, "greedy answers estimate none") if wanted.sampling.greedy else kl(policy, reference, sides[0])
    console().print(_table(wanted, judge, figures(sides[0].scores, sides[1].scores, kls, wanted.num), sides, note))
    if wanted.out is not None:
        write_lines(wanted.out, _records(sides, kls))
        print(printable(f"{len(sides[0].asked)} pairs of answers: {wanted.out}"))


def try_reward(judge: ResponseScorer, policy: Policy, prompts: Sequence[Prompt]) -> None:
    """Have a made-up response to the first prompts scored: before answers are drawn, which may take hours.

    Raises InputError where the reward fails.
    """
    renderer = policy.renderer
    judge.try_on([Exchange(renderer.with_system(list(one.messages)), _MADE_UP, one.columns) for one in prompts])


def reference_of(wanted: Evaluate) -> Trained:
    """Return the model to compare with, rendered as the policy is where it comes from no run of its own."""
    policy = find(wanted.policy, Role.policy)
    found = policy.start if wanted.against is None else find(wanted.against, Role.policy)
    if not found.has_run:
        found = replace(found, data=policy.data)
    return as_asked(found, wanted.loading)


def kl(policy: Policy, reference: Policy, side: Side) -> tuple[list[float] | None, str]:
    """Return log p - log q of each of the policy's answers, nats; none, and why, where the tokens differ.

    Its mean estimates the KL of the policy to the reference (k1), at the temperature of the sampling.
    """
    if policy.vocabulary() != reference.vocabulary():
        return None, "the tokenizers differ"
    tokens = [one.answer.tokens for one in side.asked]
    rows = zip(policy.logprobs(tokens), reference.logprobs(tokens), strict=True)
    note = "biased: --top-p cuts what logprobs count" if policy.rollout.top_p < 1 else ""
    return [float(kl_k1(p, q).double().sum()) for p, q in rows], note


def figures(scores: list[float], reference_scores: list[float], kls: list[float] | None, num: int) -> Figures:
    """Compare the scores of answers that were drawn with the same numbers; those of one prompt stand together.

    num: answers to a prompt. Intervals are over prompts, whose answers are averaged first.
    """
    pairs = list(zip(scores, reference_scores, strict=True))
    wins = by_prompt([0.5 if a == b else float(a > b) for a, b in pairs], num)
    return Figures(
        score=sum(scores) / len(scores),
        reference_score=sum(reference_scores) / len(reference_scores),
        difference=bootstrap_mean(by_prompt([a - b for a, b in pairs], num)),
        win_rate=wilson(sum(wins), len(wins)),
        kl=None if kls is None else bootstrap_mean(by_prompt(kls, num)),
    )


def by_prompt(values: Sequence[float], num: int) -> list[float]:
    """Return the mean of each prompt's `num` values, which stand together."""
    return [sum(values[start : start + num]) / num for start in range(0, len(values), num)]


def span(found: Interval, form: str, is_one: bool) -> str:
    """Return an interval for people; one prompt says nothing of how others differ, and its bootstrap has no width."""
    return "-" if is_one else f"{found.low:{form}} to {found.high:{form}}"


def _table(wanted: Evaluate, judge: ResponseScorer, found: Figures, sides: list[Side], note: str) -> Table:
    num = len(sides[0].asked)
    title = f"{wanted.policy} against {wanted.against or 'what it started from'}: {num} answers, scored by {judge.name}"
    made = Table(title=Text(printable(title)), title_justify="left")
    for place, column in enumerate(("", "policy", "reference", "difference (95 % interval)")):
        made.add_column(column, justify="left" if place == 0 else "right")
    change, wins, is_one = found.difference, found.win_rate, num == wanted.num
    made.add_row(
        "mean score",
        f"{found.score:.3f}",
        f"{found.reference_score:.3f}",
        f"{change.mean:+.3f} ({span(change, '+.3f', is_one)})",
    )
    made.add_row("win rate", f"{wins.mean:.1%}", "", f"({wins.low:.1%} to {wins.high:.1%})")
    if found.kl is None:
        made.add_row("KL to the reference, nats an answer", "-", "", note)
    else:
        spread = f"({span(found.kl, '.3f', is_one)})"
        made.add_row("KL to the reference, nats an answer", f"{found.kl.mean:.3f}", "", f"{spread} {note}".strip())
    made.add_row("tokens an answer", *(f"{side.num_tokens():.1f}" for side in sides), "")
    made.add_row("answers that end by themselves", *(f"{side.eos_rate():.1%}" for side in sides), "")
    return made


def _records(sides: list[Side], kls: list[float] | None) -> list[dict[str, Any]]:
    records = []
    for place, one in enumerate(sides[0].asked):
        whole = one.record_with({"policy": None, "reference": None})  # set below
        record = {key: value for key, value in whole.items() if key not in _OF_ONE}
        for name, side in zip(("policy", "reference"), sides, strict=True):
            answer = side.asked[place].record
            record[name] = {**{key: answer[key] for key in _OF_ONE}, "score": side.scores[place]}
        if kls is not None:
            record["policy"]["kl"] = kls[place]
        records.append(record)
    return records


_OF_ONE = ("response", "num_tokens", "ended")  # of one policy's answer
