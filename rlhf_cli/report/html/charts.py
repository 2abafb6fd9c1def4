"""Which metrics share a plot, and what is healthy. docs/metrics.md defines the metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf_cli.report.html.plots import SMOOTH, Plot, metric_trace
from rlhf_cli.report.run_records import Record


@dataclass(frozen=True)
class Chart:
    """Metrics that share a plot."""

    title: str
    metrics: tuple[str, ...]
    unit: str = ""
    hint: str = ""
    log: bool = False


PPO = (
    Chart(
        "Score",
        ("score", "eval/score", "eval/greedy_score", "eval/gold_score", "eval/greedy_gold_score"),
        "score",
        "Rises. If evaluations fall behind training, the policy memorizes its prompts.",
    ),
    Chart("KL to the reference", ("kl", "eval/kl"), "nats per response", "Starts at 0 and grows slowly."),
    Chart("Reward", ("reward",), "score", "Rises. If only the score rises, see Over-optimisation."),
    Chart("Response length", ("response_length", "eval/response_length"), "tokens", "No sudden jump."),
    Chart("Responses that end with the end token", ("eos_rate", "eval/eos_rate"), "share", "Near 1."),
    Chart("Entropy", ("entropy",), "nats per token", "Falls slowly. A sudden fall is a collapse to one response."),
    Chart("Clipped tokens", ("clipfrac/policy", "clipfrac/value"), "share", "Below 0.3 (policy) and 0.5 (value)."),
    Chart("Policy loss", ("loss/policy", "loss/kl", "loss/pretrain"), "", "Its size says little."),
    Chart("Value loss", ("loss/value",), "score^2", "Falls.", log=True),
    Chart("Values and returns", ("value", "return"), "score", "Values approach returns."),
    Chart("Spread of scores and advantages", ("score_std", "advantage_std"), "score", "Near 0, responses are alike."),
    Chart("Change of the policy per step", ("approx_kl",), "nats", "Above 0.1, updates are too large."),
    Chart("Gradient norms", ("grad_norm/policy", "grad_norm/value"), "", "No sudden jump by a factor of 10.", log=True),
    Chart("Learning rates", ("lr/policy", "lr/value")),
    Chart("KL coefficient", ("kl_coef",)),
    Chart("KL per token", ("kl_per_token",), "nats per token"),
    Chart("Updates", ("num_updates", "skipped_updates", "nonfinite_responses", "failed_rewards"), "", "None skipped."),
    Chart("Repetition", ("repetition",), "share", "Near 0. If it rises, the policy repeats itself."),
)
WIN_RATE = Chart(
    "Win rate against the responses before training",
    ("eval/win_rate", "eval/greedy_win_rate", "eval/gold_win_rate", "eval/greedy_gold_win_rate"),
    "share",
    "Above 0.5, also for gold scores. Bars are 95 % intervals.",
)
REWARD = (
    Chart("Loss", ("loss", "eval/loss"), "nats", "Starts near ln 2 = 0.693 and falls. Held-out loss does not rise."),
    Chart(
        "Accuracy",
        ("accuracy", "eval/accuracy", "eval/longer_wins_accuracy"),
        "share of pairs",
        'Held-out accuracy is well above the baseline "the longer response wins".',
    ),
    Chart("Margin", ("margin", "eval/margin"), "raw score", "Grows."),
    Chart("Centering", ("centering",), "raw score^2"),
    Chart("Gradient norm", ("grad_norm",), "", "No sudden jump by a factor of 10.", log=True),
    Chart("Learning rate", ("lr",)),
    Chart("Skipped updates", ("skipped_updates",), "", "None."),
)
SPEED = (
    Chart(
        "Tokens per second",
        ("tokens_per_s", "perf/rollout_tokens_per_s", "perf/score_tokens_per_s", "perf/update_tokens_per_s"),
        "tokens/s",
        log=True,
    ),
    Chart("Share of peak FLOP/s", ("perf/mfu", "perf/mfu_rollout", "perf/mfu_score", "perf/mfu_update"), "share"),
    Chart(
        "Memory of rank 0",
        ("memory/peak_gib", "memory/rollout_gib", "memory/score_gib", "memory/update_gib", "memory/checkpoint_gib"),
        "GiB",
    ),
    Chart("Seconds per evaluation", ("time/evaluate",), "s"),
)
_SHOWN_ELSEWHERE = ("step", "time/", "eval/", "calibration/")  # prefixes of metrics


def draw_charts(charts: Sequence[Chart], steps: Sequence[Record], evaluations: Sequence[Record]) -> Iterator[Plot]:
    """Draw the charts whose metrics were logged."""
    for chart in charts:
        found = [metric_trace(steps, name, meta=SMOOTH) for name in chart.metrics]
        found += [metric_trace(evaluations, name, kind="points") for name in chart.metrics]
        traces = [trace for trace in found if trace is not None]
        is_positive = all(value is None or value > 0 for trace in traces for value in trace["y"])
        if traces:
            yield Plot(chart.title, traces, y_title=chart.unit, hint=chart.hint, log=chart.log and is_positive)


def draw_other_metrics(
    charts: Sequence[Chart], steps: Sequence[Record], evaluations: Sequence[Record]
) -> Iterator[Plot]:
    """Draw each metric that none of the charts has, with its evaluations."""
    known = {name for chart in charts for name in chart.metrics}
    names = dict.fromkeys(name for record in steps for name in record)
    others = [name for name in names if name not in known and not name.startswith(_SHOWN_ELSEWHERE)]
    more = [Chart(name, (name, f"eval/{name}", f"eval/greedy_{name}")) for name in others]
    return draw_charts(more, steps, evaluations)
