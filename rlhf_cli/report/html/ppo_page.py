"""The page of a PPO run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_cli.report.html import setup_sections as setup
from rlhf_cli.report.html.blocks import (
    Answers,
    Block,
    Facts,
    Line,
    Mark,
    Plot,
    Section,
    Words,
    histogram,
    section,
    sections,
    short,
    way_of,
)
from rlhf_cli.report.html.charts import PPO, SPEED, WIN_RATE, others, plots
from rlhf_cli.report.overoptimization import gold_passed_its_top, over_optimised
from rlhf_cli.report.run_records import Record, RunRecords

_MOST_ANSWERS = 200  # of a mode on a page; all are in samples.jsonl
_MODES = ("greedy", "sampled")
_ABOUT_LEASH = (
    "How far the policy has gone from the reference for its score. A score can rise for good by better answers, or by "
    "what the reward model mistakes for them (arXiv:2210.10760): then KL grows and quality does not."
)


def ppo_sections(run: RunRecords) -> list[Section]:
    """Return what there is to show of a PPO run."""
    return sections(
        section("Overview", lambda: [Facts([*setup.head(run), *_facts(run)])]),
        section("Training", lambda: plots(PPO, run.steps, run.evaluations)),
        section("The leash", lambda: _leash(run), _ABOUT_LEASH),
        section("Scores, first against last", lambda: _distributions(run)),
        section("Held-out prompts", lambda: _held_out(run)),
        section("Speed and memory", lambda: setup.speed(run)),
        section("Other metrics", lambda: others((*PPO, *SPEED), run.steps, run.evaluations)),
        section("Events", lambda: setup.events(run)),
        section("Set-up", lambda: setup.setup(run)),
    )


def _facts(run: RunRecords) -> Iterator[tuple[str, str, str]]:
    scored = [step for step in run.steps if _known(step, "score", "kl")]
    if scored:
        first, last = scored[0], scored[-1]
        yield "Score", f"{short(first['score'])} → {short(last['score'])}", "of responses in training"
        yield "KL", f"{short(last['kl'])} nats", "a response, at the last step"
    for mode, figures in run.summary.get("held_out", {}).items():
        for prefix, what in (("", "Held-out score"), ("gold_", "Gold score")):
            yield from _gain(f"{what}, {mode}", figures, prefix)
    won = [one for one in run.evaluations if one["step"] > 0 and _known(one, "eval/win_rate")]
    if won and not run.summary:
        yield _win_rate(f"sampled, step {won[-1]['step']}", won[-1], "eval/win_rate")


def _gain(what: str, figures: Record, prefix: str) -> Iterator[tuple[str, str, str]]:
    before, after, mean, low, high = (
        figures.get(f"{prefix}{name}")
        for name in ("score_before", "score_after", "difference_mean", "difference_low", "difference_high")
    )
    if None not in (before, after, mean, low, high):
        yield what, f"{mean:+.3g}", f"{short(before)} → {short(after)}; 95 % {low:+.3g} to {high:+.3g}"
    if _known(figures, f"{prefix}win_rate"):
        yield _win_rate(what, figures, f"{prefix}win_rate")


def _win_rate(what: str, figures: Record, name: str) -> tuple[str, str, str]:
    interval = f"95 % {figures[f'{name}_low']:.0%} to {figures[f'{name}_high']:.0%}"
    return f"Win rate, {what}", f"{figures[name]:.0%}", f"against the answers before; {interval}"


def _leash(run: RunRecords) -> Iterator[Block]:
    steps = [step for step in run.steps if _known(step, "score", "kl")]
    if not steps:
        return
    kls, scores = [step["kl"] for step in steps], [step["score"] for step in steps]
    place = over_optimised(scores, kls, [step.get("kl_coef", 0.0) for step in steps])
    said, marks = _verdict(run, steps, place)
    evaluated = [one for one in run.evaluations if _known(one, "eval/kl", "eval/score")]
    lines = [way_of("training", steps, kind="points"), *_leash_line("eval/score", evaluated)]
    lines += _leash_line("eval/gold_score", [one for one in evaluated if _known(one, "eval/gold_score")])
    title, unit = "Score against KL, step by step", "KL, nats a response"
    yield Plot(title, tuple(lines), unit, "score", marks=tuple(marks), large=True)
    yield Words("", said)


def _leash_line(name: str, evaluated: Sequence[Record]) -> list[Line]:
    if not evaluated:
        return []
    texts = [f"evaluation at step {one['step']}" for one in evaluated]
    return [
        Line(name, [one["eval/kl"] for one in evaluated], [one[name] for one in evaluated], kind="path", text=texts)
    ]


def _verdict(run: RunRecords, steps: Sequence[Record], place: int | None) -> tuple[list[str], list[Mark]]:
    said, marks = [], []
    if place is not None:
        step = steps[place]
        said.append(
            f"From step {step['step']} on (KL {short(step['kl'])}) the score rises only by leaving the reference: "
            "every further nat costs more than the score gains. Look at the answers; raise ppo.kl_coef or stop there."
        )
        marks.append(Mark(f"only by leaving the reference, from step {step['step']}", step["kl"], step["score"]))
    gold, scores_of_prompts = _gold(run)
    top = gold_passed_its_top([one["eval/score"] for one in gold], scores_of_prompts) if gold else None
    if top is not None:
        best = gold[top]
        said.append(
            f"The gold score was highest at step {best['step']} (KL {short(best['eval/kl'])}). At the last "
            "evaluation it is lower, prompt by prompt (95 %), and the score that PPO sees higher: it is over-optimised."
        )
        marks.append(Mark(f"gold score highest, step {best['step']}", best["eval/kl"], best["eval/gold_score"]))
    if not said:
        enough = len(steps) >= 10
        said.append(
            "No sign that the score rises only by leaving the reference."
            if enough
            else f"{len(steps)} steps are too few to say whether the score rises only by leaving the reference."
        )
    return said, marks


def _gold(run: RunRecords) -> tuple[list[Record], list[list[float]]]:
    """Return the evaluations with gold scores, and those scores, prompt by prompt; [] where prompts do not match."""
    evaluated = [one for one in run.evaluations if _known(one, "eval/score", "eval/gold_score", "eval/kl")]
    rows = [run.samples.gold_at(one["step"]) for one in evaluated]
    comparable = len({len(row) for row in rows}) == 1 and len(rows[0]) > 0
    return (evaluated, rows) if comparable else ([], [])


def _distributions(run: RunRecords) -> Iterator[Block]:
    first, last = run.rollouts
    if first and last:
        names = [_span(ends[0]["step"], ends[-1]["step"]) for ends in (first, last)]
        yield _histogram("Responses in training", "score", [_all(ends, "scores") for ends in (first, last)], names)
        yield _histogram("Their KL", "nats a response", [_all(ends, "kl") for ends in (first, last)], names)
        yield _histogram("Their length", "tokens", [_all(ends, "lengths") for ends in (first, last)], names)
    for mode in _MODES:
        both = [
            [one["score"] for one in run.answers(stage, mode) if _known(one, "score")] for stage in ("before", "now")
        ]
        if all(both):
            yield _histogram(f"Held-out answers, {mode}", "score", both, ["before training", "now"])


def _span(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _all(ends: Sequence[Record], name: str) -> list[float]:
    values = [value for record in ends for value in record[name]]
    return [value for value in values if value is not None]


def _histogram(title: str, unit: str, groups: Sequence[Sequence[float]], names: Sequence[str]) -> Plot:
    return histogram(title, dict(zip(names, groups, strict=True)), unit, "share of responses")


def _held_out(run: RunRecords) -> Iterator[Block]:
    yield from plots([WIN_RATE], [], [one for one in run.evaluations if one["step"] > 0])
    rows: list[Record] = []
    pieces: list[tuple[Sequence[str], Sequence[float]]] = []
    total = 0
    for mode in _MODES:
        before, now = run.answers("before", mode), run.answers("now", mode)
        total += len(before)
        for place, old in enumerate(before):
            new = now[place] if len(now) == len(before) else None
            if place < _MOST_ANSWERS:
                rows.append(_row(mode, old, new, len(pieces)))
                pieces.append(((new or {}).get("tokens", []), (new or {}).get("kl", [])))
    if rows:
        note = "" if len(rows) == total else f"{len(rows)} of {total}; all are in samples.jsonl."
        yield Answers("Answers before and now", rows, pieces, note, any(row["gold_now"] is not None for row in rows))


def _row(mode: str, old: Record, new: Record | None, place: int) -> Record:
    later = new or {}
    return {
        "mode": mode,
        "prompt": old["prompt"],
        "before": old["response"],
        "now": later.get("response"),
        "score_before": old["score"],
        "score_now": later.get("score"),
        "gold_before": old.get("gold_score"),
        "gold_now": later.get("gold_score"),
        "step": later.get("step"),
        "place": place,
    }


def _known(record: Record, *names: str) -> bool:
    return all(record.get(name) is not None for name in names)
