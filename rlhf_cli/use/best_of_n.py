"""`rlhf best-of-n`: what the best of n answers would score, and at which KL, beside a trained policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rlhf_cli.config.sections import RolloutConfig
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.report.intervals import Interval, bootstrap_mean
from rlhf_cli.system.terminal import console
from rlhf_cli.system.text import printable
from rlhf_cli.use.cli_options import Loading, Rewarding, Rows, Sampling
from rlhf_cli.use.evaluate import Side, by_prompt, kl, span, try_reward
from rlhf_cli.use.input_rows import prompts
from rlhf_cli.use.response_scorer import ResponseScorer
from rlhf_cli.use.responses import as_asked, ask, exchanges, write_lines
from rlhf_cli.use.reward_scorer import device_of
from rlhf_cli.use.trained_policy import Policy
from rlhf_cli.use.trained_runs import Role, Trained, find

_NUM_OF_POLICY = 4  # answers of the trained policy to every prompt, at most


@dataclass(frozen=True)
class BestOfN:
    """What was asked for."""

    model: str
    policy: str | None  # to compare with
    rows: Rows
    rewarding: Rewarding
    sizes: list[int]  # n
    num: int  # answers to every prompt
    out: Path | None
    loading: Loading
    sampling: Sampling


def run(wanted: BestOfN) -> None:
    """Draw and score the answers; show the expected best of n, and the trained policy."""
    asked_for = prompts(wanted.rows, "--prompts")
    judge = ResponseScorer.of(wanted.rewarding, "--reward")
    try:
        base = Policy(*_base(wanted), device_of(wanted.loading.device))
        policy = None if wanted.policy is None else _trained(wanted.policy, wanted, base)
        try_reward(judge, base, asked_for)
        asked = ask(base, asked_for, wanted.num, wanted.sampling)
        side = Side(asked, judge.score(exchanges(base, asked)))
        made = _table(wanted, judge, side.scores)
        if policy is not None:
            made.add_row(printable(str(wanted.policy)), *_of_policy(policy, wanted, base, judge, asked_for))
    finally:
        judge.close()
    console().print(made)
    if wanted.out is not None:
        write_lines(
            wanted.out, (one.record_with({"score": score}) for one, score in zip(asked, side.scores, strict=True))
        )
        print(printable(f"{len(asked)} answers: {wanted.out}"))


def expected_best(scores: Sequence[float], n: int) -> float:
    """Return the mean, over all choices of n of the N scores, of the highest one chosen.

    It is an unbiased estimate of the expected score of the best of n answers: with the scores in ascending order, the
    i-th is the highest in C(i - 1, n - 1) of the C(N, n) choices.
    """
    every = math.comb(len(scores), n)
    return sum(math.comb(place, n - 1) / every * score for place, score in enumerate(sorted(scores)))


def kl_of_best(n: int) -> float:
    """Return the KL of the best of n answers to the policy they are drawn from, nats: log n - (n - 1) / n.

    Source: arXiv:2210.10760, section 2; it is an upper bound where answers can be equal.
    """
    return math.log(n) - (n - 1) / n


def best_of(scores: Sequence[float], num: int, n: int) -> Interval:
    """Return the expected score of the best of n, with an interval over prompts, whose `num` scores stand together."""
    starts = range(0, len(scores), num)
    return bootstrap_mean([expected_best(scores[start : start + num], n) for start in starts])


def _base(wanted: BestOfN) -> tuple[Trained, RolloutConfig]:
    """Return the model that is drawn from, rendered and sampled as the policy is where it comes from no run."""
    found = find(wanted.model, Role.policy)
    if wanted.policy is not None and not found.has_run:
        policy = find(wanted.policy, Role.policy)
        found = replace(found, data=policy.data, rollout=policy.rollout)
    found = as_asked(found, wanted.loading)
    return found, wanted.sampling.over(found.rollout)


def _trained(path: str, wanted: BestOfN, base: Policy) -> Policy:
    """Load the trained policy, to be sampled as the base is."""
    return Policy(as_asked(find(path, Role.policy), wanted.loading), base.rollout, base.device)


def _of_policy(
    policy: Policy, wanted: BestOfN, base: Policy, judge: ResponseScorer, asked_for: list[Prompt]
) -> list[str]:
    """Return the figures of a trained policy."""
    num = min(wanted.num, _NUM_OF_POLICY)
    asked = ask(policy, asked_for, num, wanted.sampling)
    side = Side(asked, judge.score(exchanges(policy, asked)))
    score = bootstrap_mean(by_prompt(side.scores, num))
    kls, note = kl(policy, base, side)
    measured = f"- ({note})" if kls is None else f"{sum(kls) / len(kls):.3f} {note}".strip()
    return [measured, *_shown(score, len(asked_for) == 1)]


def _table(wanted: BestOfN, judge: ResponseScorer, scores: Sequence[float]) -> Table:
    num_prompts = len(scores) // wanted.num
    title = f"{wanted.model}: {num_prompts} prompts, {wanted.num} answers each, scored by {judge.name}"
    made = Table(title=Text(printable(title)), title_justify="left")
    for place, column in enumerate(("", "KL, nats an answer", "expected score", "95 % interval")):
        made.add_column(column, justify="left" if place == 0 else "right")
    for n in wanted.sizes:
        made.add_row(f"best of {n}", f"{kl_of_best(n):.3f}", *_shown(best_of(scores, wanted.num, n), num_prompts == 1))
    return made


def _shown(score: Interval, is_one: bool) -> tuple[str, str]:
    return f"{score.mean:.3f}", span(score, ".3f", is_one)
