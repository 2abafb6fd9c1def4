"""The page of a reward-model run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_cli.report import calibration as judgement
from rlhf_cli.report.calibration import Group
from rlhf_cli.report.html import setup_sections as setup
from rlhf_cli.report.html.blocks import Block, Facts, Line, Plot, Section, Table, histogram, section, sections, short
from rlhf_cli.report.html.charts import REWARD, SPEED, others, plots
from rlhf_cli.report.intervals import Interval
from rlhf_cli.report.run_records import Record, RunRecords

_MOST_WRONG = 50
_ABOUT_PAIRS = (
    "Every held-out pair: accuracy and margins by the scores of the exported model, probabilities by the head as it "
    "was trained, before its scores were normalised."
)


def reward_sections(run: RunRecords) -> list[Section]:
    """Return what there is to show of a reward-model run."""
    return sections(
        section("Overview", lambda: [Facts([*setup.head(run), *_facts(run)])]),
        section("Training", lambda: plots(REWARD, run.steps, _on_one_scale(run))),
        section("Held-out pairs", lambda: _held_out(run.pairs) if run.pairs else (), _ABOUT_PAIRS),
        section("Where it is wrong", lambda: _wrong(run.pairs)),
        section("Speed and memory", lambda: setup.speed(run)),
        section("Other metrics", lambda: others((*REWARD, *SPEED), run.steps, run.evaluations)),
        section("Events", lambda: setup.events(run)),
        section("Set-up", lambda: setup.setup(run)),
    )


def _on_one_scale(run: RunRecords) -> list[Record]:
    """Return the evaluations; of the last one, which is of the normalised head, loss and margin of the trained head."""
    if not run.pairs:
        return [one for one in run.evaluations if "calibration/std" not in one]
    loss, margin = judgement.loss_and_margin(run.pairs)
    return [
        {**one, "eval/loss": loss, "eval/margin": margin} if "calibration/std" in one else one
        for one in run.evaluations
    ]


def _facts(run: RunRecords) -> Iterator[tuple[str, str, str]]:
    if run.pairs:
        found, baseline = judgement.accuracy(run.pairs), judgement.longer_wins(run.pairs)
        yield "Held-out accuracy", f"{found.mean:.1%}", f"95 % {_percent(found)}; {len(run.pairs)} pairs"
        yield "The longer answer wins", f"{baseline.mean:.1%}", f"a baseline; 95 % {_percent(baseline)}"
        calibration = judgement.calibration(run.pairs)
        yield "Calibration error (ECE)", f"{calibration.ece:.3f}", "0 is best"
        yield "Brier score", f"{calibration.brier:.3f}", "0 is best, 0.25 is a coin"
        return
    evaluated = next((one for one in reversed(run.evaluations) if one.get("eval/accuracy") is not None), None)
    if evaluated is not None:
        what = f"held-out, at step {evaluated['step']}"
        yield "Accuracy", f"{evaluated['eval/accuracy']:.1%}", what
        yield "The longer answer wins", f"{evaluated['eval/longer_wins_accuracy']:.1%}", "a baseline"


def _held_out(pairs: Sequence[Record]) -> Iterator[Block]:
    yield _groups(
        "Accuracy beside its baseline",
        [
            Group("reward model", judgement.accuracy(pairs), len(pairs)),
            Group("the longer answer wins", judgement.longer_wins(pairs), len(pairs)),
        ],
        "",
    )
    margins = [pair["score_chosen"] - pair["score_rejected"] for pair in pairs]
    title, unit = "Margins", "score(chosen) - score(rejected)"
    yield histogram(title, {"pairs": margins}, unit, "share of pairs", "Right of 0 is right.")
    yield _calibration(pairs)
    by_gap = judgement.by_length_gap(pairs)
    if by_gap:
        hint = "Far lower on the left: it prefers long answers whatever they say."
        yield _groups("Accuracy by length gap", by_gap, "tokens of chosen less rejected", hint)
    by_category = judgement.by_category(pairs)
    if by_category:
        yield _groups("Accuracy by category", by_category, "category")


def _calibration(pairs: Sequence[Record]) -> Plot:
    found = judgement.calibration(pairs)
    curve = Line(
        "measured",
        [one.confidence for one in found.bins],
        [one.accuracy.mean for one in found.bins],
        kind="points",
        low=[one.accuracy.low for one in found.bins],
        high=[one.accuracy.high for one in found.bins],
        text=[f"{one.num_pairs} pairs" for one in found.bins],
    )
    line = Line("perfect", [0.5, 1.0], [0.5, 1.0], kind="path")
    title = f"Calibration: ECE {found.ece:.3f}, Brier {found.brier:.3f}"
    return Plot(title, (curve, line), "confidence", "accuracy", "On the line; under it, the model is too sure.")


def _wrong(pairs: Sequence[Record]) -> Iterator[Block]:
    worst = judgement.most_wrong(pairs, _MOST_WRONG)
    if worst:
        columns = ("prompt", "chosen", "rejected", "score chosen", "score rejected", "probability")
        rows = [
            (
                pair["prompt"],
                pair["chosen"],
                pair["rejected"],
                pair["score_chosen"],
                pair["score_rejected"],
                judgement.probability(pair),
            )
            for pair in worst
        ]
        note = "Probability is what the model gives to the answer that people chose. All pairs are in pairs.jsonl."
        yield Table("The pairs it gets most wrong", columns, rows, note, wide=True)


def _groups(title: str, groups: Sequence[Group], unit: str, hint: str = "") -> Plot:
    line = Line(
        "accuracy",
        [group.name for group in groups],
        [group.accuracy.mean for group in groups],
        kind="bars",
        low=[group.accuracy.low for group in groups],
        high=[group.accuracy.high for group in groups],
        text=[f"{group.num_pairs} pairs, {short(group.accuracy.mean)}" for group in groups],
    )
    return Plot(title, (line,), unit, "accuracy", hint)


def _percent(interval: Interval) -> str:
    return f"{interval.low:.1%} to {interval.high:.1%}"
