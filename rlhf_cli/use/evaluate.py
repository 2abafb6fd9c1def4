"""`rlhf evaluate`: compares a policy with a reference, by the scores of a reward."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhf_cli.algo.kl import kl_k1
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.report.intervals import Interval, bootstrap_mean, wilson
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.system.terminal import console
from rlhf_cli.system.text import printable
from rlhf_cli.use.cli_options import Sampling
from rlhf_cli.use.commands import EvaluateOptions
from rlhf_cli.use.input_rows import read_prompts
from rlhf_cli.use.response_scorer import ResponseScorer
from rlhf_cli.use.responses import Response, respond, write_json_lines
from rlhf_cli.use.trained_policy import TrainedPolicy

_PROBE = "A made-up response to test the reward."
_PER_POLICY = ("response", "num_tokens", "ended")  # fields of one policy's response in a record


@dataclass(frozen=True)
class ScoredResponses:
    """One policy's responses, those to one prompt together, and their scores."""

    responses: list[Response]
    scores: list[float]


@dataclass(frozen=True)
class Comparison:
    """Two policies compared. The responses to a prompt count as one observation."""

    score: float
    reference_score: float
    difference: Interval  # paired
    win_rate: Interval  # ties count half
    kl: Interval | None  # nats per response


def run(options: EvaluateOptions) -> None:
    """Generate and score the responses of both policies, and show how they compare."""
    prompts = read_prompts(options.rows)
    with closing(ResponseScorer.open(options.reward)) as scorer:
        policy = TrainedPolicy(options.policy, options.loading)
        reference = TrainedPolicy(options.reference, options.loading, key="reference")
        probe_reward(scorer, policy, prompts)
        sides = [scored_responses(one, scorer, prompts, options.num, options.sampling) for one in (policy, reference)]
        name = scorer.name
    kls, note = None, "not estimated from greedy responses"
    if not options.sampling.greedy:
        kls, note = kl(policy, reference, sides[0].responses)
    found = compare(sides[0].scores, sides[1].scores, kls, options.num)
    num = len(sides[0].responses)
    title = f"{policy.name} against {reference.name}: {num} responses, scored by {name}"
    console().print(_table(title, found, sides, note, has_one_prompt=num == options.num))
    if options.out is not None:
        write_json_lines(options.out, _records(sides, kls))
        print(printable(f"{num} pairs of responses: {options.out}"))


def probe_reward(scorer: ResponseScorer, policy: TrainedPolicy, prompts: Sequence[Prompt]) -> None:
    """Score a made-up response to the first prompts, before hours of generation.

    Raises InputError if the reward fails.
    """
    with_system = policy.renderer.with_system
    scorer.probe([Exchange(with_system(list(one.messages)), _PROBE, one.columns) for one in prompts])


def scored_responses(
    policy: TrainedPolicy, scorer: ResponseScorer, prompts: Sequence[Prompt], num: int, sampling: Sampling
) -> ScoredResponses:
    """Return `num` responses to every prompt with their scores."""
    responses = respond(policy, prompts, num, sampling)
    return ScoredResponses(responses, scorer.score([response.exchange for response in responses]))


def kl(
    policy: TrainedPolicy, reference: TrainedPolicy, responses: Sequence[Response]
) -> tuple[list[float] | None, str]:
    """Return log p - log q of the policy's responses, nats; None if the tokenizers differ.

    The mean estimates the KL of the policy to the reference (k1) at the sampling temperature.
    """
    if policy.vocabulary() != reference.vocabulary():
        return None, "the tokenizers differ"
    sequences = [response.tokens for response in responses]
    pairs = zip(policy.logprobs(sequences), reference.logprobs(sequences), strict=True)
    note = "biased: logprobs ignore --top-p" if policy.rollout.top_p < 1 else ""
    return [float(kl_k1(p, q).double().sum()) for p, q in pairs], note


def compare(scores: list[float], reference_scores: list[float], kls: list[float] | None, num: int) -> Comparison:
    """Compare the scores of responses that used the same random numbers.

    num: responses per prompt, which are together. Intervals are over the means of prompts.
    """
    pairs = list(zip(scores, reference_scores, strict=True))
    wins = prompt_means([0.5 if a == b else float(a > b) for a, b in pairs], num)
    return Comparison(
        score=sum(scores) / len(scores),
        reference_score=sum(reference_scores) / len(reference_scores),
        difference=bootstrap_mean(prompt_means([a - b for a, b in pairs], num)),
        win_rate=wilson(sum(wins), len(wins)),
        kl=None if kls is None else bootstrap_mean(prompt_means(kls, num)),
    )


def prompt_means(values: Sequence[float], num: int) -> list[float]:
    """Return the mean of each prompt's `num` values, which are together."""
    return [sum(values[start : start + num]) / num for start in range(0, len(values), num)]


def interval_text(interval: Interval, form: str, has_one_prompt: bool) -> str:
    """Return an interval as text; one prompt has none, as it does not show how prompts differ."""
    return "-" if has_one_prompt else f"{interval.low:{form}} to {interval.high:{form}}"


def make_table(title: str, columns: Sequence[str]) -> Table:
    """Return a table whose first column has labels and whose other columns have numbers."""
    table = Table(title=Text(printable(title)), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _table(title: str, found: Comparison, sides: list[ScoredResponses], note: str, has_one_prompt: bool) -> Table:
    table = make_table(title, ("", "policy", "reference", "difference (95 % interval)"))
    change, wins, kl = found.difference, found.win_rate, found.kl
    spread = interval_text(change, "+.3f", has_one_prompt)
    table.add_row("mean score", f"{found.score:.3f}", f"{found.reference_score:.3f}", f"{change.mean:+.3f} ({spread})")
    table.add_row("win rate", f"{wins.mean:.1%}", "", f"({wins.low:.1%} to {wins.high:.1%})")
    spread = "" if kl is None else f"({interval_text(kl, '.3f', has_one_prompt)}) "
    mean = "-" if kl is None else f"{kl.mean:.3f}"
    table.add_row("KL to the reference (nats/response)", mean, "", f"{spread}{note}".strip())
    lengths, ends = zip(*(_length_and_ends(side.responses) for side in sides), strict=True)
    table.add_row("tokens per response", *(f"{length:.1f}" for length in lengths), "")
    table.add_row("responses with an end token", *(f"{share:.1%}" for share in ends), "")
    return table


def _length_and_ends(responses: Sequence[Response]) -> tuple[float, float]:
    """Return the mean tokens of a response, and the share of responses with an end token."""
    length = sum(response.num_tokens for response in responses) / len(responses)
    return length, sum(response.ended for response in responses) / len(responses)


def _records(sides: list[ScoredResponses], kls: list[float] | None) -> list[dict[str, Any]]:
    records = []
    for index, response in enumerate(sides[0].responses):
        fields = response.record(policy=None, reference=None)  # set below
        record = {key: value for key, value in fields.items() if key not in _PER_POLICY}
        for name, side in zip(("policy", "reference"), sides, strict=True):
            own = side.responses[index].record()
            record[name] = {**{key: own[key] for key in _PER_POLICY}, "score": side.scores[index]}
        if kls is not None:
            record["policy"]["kl"] = kls[index]
        records.append(record)
    return records
