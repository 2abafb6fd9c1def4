"""The report of a reward-model run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_cli.report import calibration
from rlhf_cli.report.calibration import Group
from rlhf_cli.report.html import setup_sections
from rlhf_cli.report.html.blocks import Facts, Paragraphs, Section, Table, build_sections, short
from rlhf_cli.report.html.charts import REWARD, SPEED, draw_charts, draw_other_metrics
from rlhf_cli.report.html.plots import Plot, histogram, interval, make_trace
from rlhf_cli.report.intervals import Interval
from rlhf_cli.report.run_records import Record, RunRecords

_MAX_WRONG = 50
_ABOUT_PAIRS = (
    "All held-out pairs. Accuracy and margins use the scores of the exported model. Probabilities use the head as it "
    "was trained, before its scores were normalized."
)


def reward_sections(run: RunRecords) -> list[Section]:
    """Return the sections of a reward-model run that have data."""
    return build_sections(
        ("Overview", lambda: [Facts([*setup_sections.run_facts(run), *_facts(run)])]),
        ("Training", lambda: draw_charts(REWARD, run.steps, _with_trained_head(run))),
        ("Held-out pairs", lambda: _held_out(run.pairs)),
        ("Where it is wrong", lambda: _most_wrong(run.pairs)),
        ("Speed and memory", lambda: setup_sections.speed(run)),
        ("Other metrics", lambda: draw_other_metrics((*REWARD, *SPEED), run.steps, run.evaluations)),
        ("Events", lambda: setup_sections.events(run)),
        ("Setup", lambda: setup_sections.setup(run)),
    )


def _with_trained_head(run: RunRecords) -> list[Record]:
    """Return the evaluations on one scale: the last one gets loss and margin of the trained head."""
    if not run.pairs:
        return [one for one in run.evaluations if "calibration/std" not in one]
    loss, margin = calibration.loss_and_margin(run.pairs)
    return [
        {**one, "eval/loss": loss, "eval/margin": margin} if "calibration/std" in one else one
        for one in run.evaluations
    ]


def _facts(run: RunRecords) -> Iterator[tuple[str, str, str]]:
    if run.pairs:
        accuracy, baseline = calibration.accuracy(run.pairs), calibration.longer_wins(run.pairs)
        yield "Held-out accuracy", f"{accuracy.mean:.1%}", f"95 % {_percent(accuracy)}; {len(run.pairs)} pairs"
        yield "The longer response wins", f"{baseline.mean:.1%}", f"a baseline; 95 % {_percent(baseline)}"
        found = calibration.Calibration(run.pairs)
        yield "Calibration error (ECE)", f"{found.ece:.3f}", "0 is best"
        yield "Brier score", f"{found.brier:.3f}", "0 is best, 0.25 is a coin flip"
        return
    evaluated = next((one for one in reversed(run.evaluations) if one.get("eval/accuracy") is not None), None)
    if evaluated is not None:
        yield "Accuracy", f"{evaluated['eval/accuracy']:.1%}", f"held-out, at step {evaluated['step']}"
        yield "The longer response wins", f"{evaluated['eval/longer_wins_accuracy']:.1%}", "a baseline"


def _held_out(pairs: Sequence[Record]) -> Iterator[Plot | Paragraphs]:
    if not pairs:
        return
    yield Paragraphs([_ABOUT_PAIRS])
    baseline = Group("the longer response wins", calibration.longer_wins(pairs), len(pairs))
    model = Group("reward model", calibration.accuracy(pairs), len(pairs))
    yield _accuracies("Accuracy and its baseline", [model, baseline], "")
    margins = {"pairs": [pair["score_chosen"] - pair["score_rejected"] for pair in pairs]}
    hint = "Pairs on the right of 0 are correct."
    yield histogram("Margins", margins, "score(chosen) - score(rejected)", "share of pairs", hint)
    yield _calibration(pairs)
    if by_gap := calibration.by_length_gap(pairs):
        hint = "If it is far lower on the left, the model prefers long responses whatever they say."
        yield _accuracies("Accuracy by length gap", by_gap, "tokens of chosen minus rejected", hint)
    if by_category := calibration.by_category(pairs):
        yield _accuracies("Accuracy by category", by_category, "category")


def _calibration(pairs: Sequence[Record]) -> Plot:
    found = calibration.Calibration(pairs)
    curve = _accuracy_trace("measured", [one.confidence for one in found.bins], found.bins, "points")
    line = make_trace("perfect", [0.5, 1.0], [0.5, 1.0], kind="line")
    hint = "On the line is perfect. Below it, the model is too confident."
    title = f"Calibration: ECE {found.ece:.3f}, Brier {found.brier:.3f}"
    return Plot(title, [curve, line], "confidence", "accuracy", hint)


def _most_wrong(pairs: Sequence[Record]) -> Iterator[Table]:
    worst = calibration.most_wrong(pairs, _MAX_WRONG)
    if worst:
        columns = ("prompt", "chosen", "rejected", "score chosen", "score rejected", "probability")
        keys = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")
        rows = [[*(pair[key] for key in keys), calibration.probability(pair)] for pair in worst]
        note = "probability: the model's probability that the chosen response is better. All pairs are in pairs.jsonl."
        yield Table("The pairs it gets most wrong", columns, rows, note, wide=True)


def _accuracies(title: str, groups: Sequence[Group], x_title: str, hint: str = "") -> Plot:
    bars = _accuracy_trace("accuracy", [group.name for group in groups], groups, "bars")
    return Plot(title, [bars], x_title, "accuracy", hint)


def _accuracy_trace(name: str, x: Sequence[float | str], groups: Sequence[Group], kind: str) -> dict[str, object]:
    """Return the accuracies of groups of pairs with their intervals."""
    accuracies = [group.accuracy for group in groups]
    y = [one.mean for one in accuracies]
    bars = interval(y, [one.low for one in accuracies], [one.high for one in accuracies])
    text = [f"{group.num_pairs} pairs, {short(group.accuracy.mean)}" for group in groups]
    return make_trace(name, x, y, kind=kind, error_y=bars, text=text, textposition="none")


def _percent(bounds: Interval) -> str:
    return f"{bounds.low:.1%} to {bounds.high:.1%}"
