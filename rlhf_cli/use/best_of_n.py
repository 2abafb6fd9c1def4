"""`rlhf best-of-n`: expected score and KL of the best of n responses, and of a trained policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing

from rlhf_cli.data.prompts import Prompt
from rlhf_cli.report.intervals import Interval, bootstrap_mean
from rlhf_cli.system.terminal import console
from rlhf_cli.system.text import printable
from rlhf_cli.use.commands import BestOfNOptions
from rlhf_cli.use.evaluate import interval_text, kl, make_table, probe_reward, prompt_means, scored_responses
from rlhf_cli.use.input_rows import read_prompts
from rlhf_cli.use.response_scorer import ResponseScorer
from rlhf_cli.use.responses import write_json_lines
from rlhf_cli.use.trained_policy import TrainedPolicy

_MAX_POLICY_SAMPLES = 4  # responses of the trained policy per prompt


def run(options: BestOfNOptions) -> None:
    """Generate and score the responses; show the expected best of n, and the trained policy."""
    prompts, num = read_prompts(options.rows), options.num
    with closing(ResponseScorer.open(options.reward)) as scorer:
        base = TrainedPolicy(options.base, options.loading)
        policy = None if options.policy is None else TrainedPolicy(options.policy, options.loading)
        probe_reward(scorer, base, prompts)
        drawn = scored_responses(base, scorer, prompts, num, options.sampling)
        title = f"{base.name}: {len(prompts)} prompts, {num} responses each, scored by {scorer.name}"
        table = make_table(title, ("", "KL (nats/response)", "expected score", "95 % interval"))
        for n in options.sizes:
            score = best_of(drawn.scores, num, n)
            table.add_row(f"best of {n}", f"{kl_of_best(n):.3f}", *_score_cells(score, prompts))
        if policy is not None:
            table.add_row(printable(policy.name), *_policy_cells(policy, base, scorer, prompts, options))
    console().print(table)
    if options.out is not None:
        pairs = zip(drawn.responses, drawn.scores, strict=True)
        write_json_lines(options.out, (response.record(score=score) for response, score in pairs))
        print(printable(f"{len(drawn.responses)} responses: {options.out}"))


def expected_best(scores: Sequence[float], n: int) -> float:
    """Return the mean, over all choices of n of the N scores, of the highest score chosen.

    This is an unbiased estimate of the expected score of the best of n responses: in ascending
    order, the i-th score is the highest in C(i - 1, n - 1) of the C(N, n) choices.
    """
    num_choices = math.comb(len(scores), n)
    return sum(math.comb(index, n - 1) / num_choices * score for index, score in enumerate(sorted(scores)))


def kl_of_best(n: int) -> float:
    """Return the KL of the best of n responses to their policy, nats: log n - (n - 1) / n.

    Source: arXiv:2210.10760, section 2. It is an upper bound if responses can be equal.
    """
    return math.log(n) - (n - 1) / n


def best_of(scores: Sequence[float], num: int, n: int) -> Interval:
    """Return the expected score of the best of n, with an interval over prompts.

    num: scores per prompt, which are together.
    """
    starts = range(0, len(scores), num)
    return bootstrap_mean([expected_best(scores[start : start + num], n) for start in starts])


def _policy_cells(
    policy: TrainedPolicy, base: TrainedPolicy, scorer: ResponseScorer, prompts: list[Prompt], options: BestOfNOptions
) -> tuple[str, ...]:
    """Return the KL, the score and its interval of a trained policy."""
    num = min(options.num, _MAX_POLICY_SAMPLES)
    drawn = scored_responses(policy, scorer, prompts, num, options.sampling)
    kls, note = kl(policy, base, drawn.responses)
    measured = f"- ({note})" if kls is None else f"{sum(kls) / len(kls):.3f} {note}".strip()
    return (measured, *_score_cells(bootstrap_mean(prompt_means(drawn.scores, num)), prompts))


def _score_cells(score: Interval, prompts: list[Prompt]) -> tuple[str, str]:
    return f"{score.mean:.3f}", interval_text(score, ".3f", has_one_prompt=len(prompts) == 1)
