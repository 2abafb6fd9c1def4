"""Which metrics are drawn together, and what healthy looks like; docs/metrics.md has their formulas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf_cli.report.html.blocks import Line, Plot, line_of
from rlhf_cli.report.run_records import Record


@dataclass(frozen=True)
class Chart:
    """Metrics that share a plot."""

    title: str
    metrics: tuple[str, ...]
    unit: str
    hint: str = ""
    log: bool = False


PPO = (
    Chart(
        "Score",
        ("score", "eval/score", "eval/greedy_score", "eval/gold_score", "eval/greedy_gold_score"),
        "score",
        "Rises. An evaluation that stays behind training: the policy learns its prompts by heart.",
    ),
    Chart("KL to the reference", ("kl", "eval/kl"), "nats a response", "Starts at 0 and grows slowly."),
    Chart(
        "Reward", ("reward",), "score", "Score less penalties less KL: rises. If only the score rises, see the leash."
    ),
    Chart("Response length", ("response_length", "eval/response_length"), "tokens", "No sudden jump."),
    Chart("Responses that end by themselves", ("eos_rate", "eval/eos_rate"), "share", "Near 1."),
    Chart("Entropy", ("entropy",), "nats a token", "Falls slowly; a sudden fall is a collapse on one answer."),
    Chart(
        "Clipped tokens", ("clipfrac/policy", "clipfrac/value"), "share", "Under 0.3 for the policy, 0.5 for values."
    ),
    Chart("Policy loss", ("loss/policy", "loss/kl", "loss/pretrain"), "", "Its size says little."),
    Chart("Value loss", ("loss/value",), "score^2", "Falls.", log=True),
    Chart("Values and returns", ("value", "return"), "score", "Values approach returns."),
    Chart("Spread of scores and advantages", ("score_std", "advantage_std"), "score", "Near 0: all answers are alike."),
    Chart("Change of the policy a step", ("approx_kl",), "nats", "Over 0.1: updates are too large."),
    Chart("Gradient norms", ("grad_norm/policy", "grad_norm/value"), "", "No sudden jump by 10.", log=True),
    Chart("Learning rates", ("lr/policy", "lr/value"), ""),
    Chart("KL coefficient", ("kl_coef",), ""),
    Chart("KL a token", ("kl_per_token",), "nats a token"),
    Chart("Updates", ("num_updates", "skipped_updates", "nonfinite_responses", "failed_rewards"), "", "None skipped."),
    Chart("Repetition", ("repetition",), "share", "Near 0; rises: the policy goes round in circles."),
)
WIN_RATE = Chart(
    "Win rate against the answers before training",
    ("eval/win_rate", "eval/greedy_win_rate", "eval/gold_win_rate", "eval/greedy_gold_win_rate"),
    "share",
    "Over 0.5, by gold too; bars are 95 % intervals.",
)
REWARD = (
    Chart("Loss", ("loss", "eval/loss"), "nats", "Starts near ln 2 = 0.693 and falls; held-out loss does not turn up."),
    Chart(
        "Accuracy",
        ("accuracy", "eval/accuracy", "eval/longer_wins_accuracy"),
        "share of pairs",
        "Held-out accuracy well above that of the longer answer wins.",
    ),
    Chart("Margin", ("margin", "eval/margin"), "raw score", "Grows."),
    Chart("Centering", ("centering",), "raw score^2"),
    Chart("Gradient norm", ("grad_norm",), "", "No sudden jump by 10.", log=True),
    Chart("Learning rate", ("lr",), ""),
    Chart("Skipped updates", ("skipped_updates",), "", "None."),
)
SPEED = (
    Chart(
        "Tokens a second",
        ("tokens_per_s", "perf/rollout_tokens_per_s", "perf/score_tokens_per_s", "perf/update_tokens_per_s"),
        "tokens/s",
        log=True,
    ),
    Chart(
        "Share of the machine's matrix products",
        ("perf/mfu", "perf/mfu_rollout", "perf/mfu_score", "perf/mfu_update"),
        "share",
    ),
    Chart(
        "Memory of rank 0",
        ("memory/peak_gib", "memory/rollout_gib", "memory/score_gib", "memory/update_gib", "memory/checkpoint_gib"),
        "GiB",
    ),
    Chart("Seconds of an evaluation", ("time/evaluate",), "s"),
)
ELSEWHERE = ("step", "time/", "eval/", "calibration/")  # names, or how they begin, that have a place of their own


def plots(charts: Sequence[Chart], records: Sequence[Record], evaluations: Sequence[Record]) -> Iterator[Plot]:
    """Draw the charts that have figures."""
    for chart in charts:
        found = [line_of(records, name, smooth=True) for name in chart.metrics]
        found += [line_of(evaluations, name, kind="points") for name in chart.metrics]
        lines = tuple(line for line in found if line is not None)
        if lines:
            yield Plot(chart.title, lines, y_title=chart.unit, hint=chart.hint, log=chart.log and _positive(lines))


def others(known: Sequence[Chart], records: Sequence[Record], evaluations: Sequence[Record]) -> Iterator[Plot]:
    """Draw every metric that no chart is for, with what evaluations say of it."""
    taken = {name for chart in known for name in chart.metrics}
    names = dict.fromkeys(name for record in records for name in record)
    free = [name for name in names if name not in taken and not name.startswith(ELSEWHERE)]
    charts = [Chart(name, (name, f"eval/{name}", f"eval/greedy_{name}"), "") for name in free]
    return plots(charts, records, evaluations)


def _positive(lines: Sequence[Line]) -> bool:
    return all(value is None or value > 0 for line in lines for value in line.y)
