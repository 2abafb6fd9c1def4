"""The report of a PPO run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlhf_cli.report.html import setup_sections
from rlhf_cli.report.html.blocks import Facts, Paragraphs, Responses, Section, build_sections, short
from rlhf_cli.report.html.charts import PPO, SPEED, WIN_RATE, draw_charts, draw_other_metrics
from rlhf_cli.report.html.plots import Plot, Trace, histogram, make_trace, score_over_kl
from rlhf_cli.report.overoptimization import MIN_STEPS, find_gold_peak, find_overoptimization
from rlhf_cli.report.run_records import Record, RunRecords, has_values

_MAX_RESPONSES = 200  # of a mode on the page; all of them are in samples.jsonl
_MODES = ("greedy", "sampled")
_ABOUT_OVEROPTIMIZATION = (
    "How far the policy has moved from the reference for its score. A score can rise because the responses are better, "
    "or because of errors of the reward model (arXiv:2210.10760): then KL grows and quality does not."
)


def ppo_sections(run: RunRecords) -> list[Section]:
    """Return the sections of a PPO run that have data."""
    return build_sections(
        ("Overview", lambda: [Facts([*setup_sections.run_facts(run), *_facts(run)])]),
        ("Training", lambda: draw_charts(PPO, run.steps, run.evaluations)),
        ("Over-optimisation", lambda: _overoptimization(run)),
        ("First and last steps", lambda: _distributions(run)),
        ("Held-out prompts", lambda: _held_out(run)),
        ("Speed and memory", lambda: setup_sections.speed(run)),
        ("Other metrics", lambda: draw_other_metrics((*PPO, *SPEED), run.steps, run.evaluations)),
        ("Events", lambda: setup_sections.events(run)),
        ("Setup", lambda: setup_sections.setup(run)),
    )


def _facts(run: RunRecords) -> Iterator[tuple[str, str, str]]:
    steps = [step for step in run.steps if has_values(step, "score", "kl")]
    if steps:
        yield "Score", f"{short(steps[0]['score'])} → {short(steps[-1]['score'])}", "of responses in training"
        yield "KL", f"{short(steps[-1]['kl'])} nats", "per response, at the last step"
    for mode, metrics in run.summary.get("held_out", {}).items():
        for prefix, name in (("", f"Held-out score, {mode}"), ("gold_", f"Gold score, {mode}")):
            ends = [f"{prefix}{end}" for end in ("score_before", "score_after")]
            mean, low, high = (f"{prefix}difference_{figure}" for figure in ("mean", "low", "high"))
            if has_values(metrics, *ends, mean, low, high):
                before, after = (short(metrics[end]) for end in ends)
                change = f"{before} → {after}; 95 % {metrics[low]:+.3g} to {metrics[high]:+.3g}"
                yield name, f"{metrics[mean]:+.3g}", change
            if has_values(metrics, f"{prefix}win_rate"):
                yield _win_rate(name, metrics, f"{prefix}win_rate")
    evaluated = [one for one in run.evaluations if one["step"] > 0 and has_values(one, "eval/win_rate")]
    if evaluated and not run.summary:
        yield _win_rate(f"sampled, step {evaluated[-1]['step']}", evaluated[-1], "eval/win_rate")


def _win_rate(what: str, metrics: Record, name: str) -> tuple[str, str, str]:
    bounds = f"95 % {metrics[f'{name}_low']:.0%} to {metrics[f'{name}_high']:.0%}"
    return f"Win rate, {what}", f"{metrics[name]:.0%}", f"against the responses before training; {bounds}"


def _overoptimization(run: RunRecords) -> Iterator[Plot | Paragraphs]:
    steps = [step for step in run.steps if has_values(step, "score", "kl")]
    if not steps:
        return
    evaluated = [one for one in run.evaluations if has_values(one, "eval/kl", "eval/score")]
    traces = [score_over_kl("training", steps, with_colours=True)]
    for name in ("eval/score", "eval/gold_score"):
        known = [one for one in evaluated if has_values(one, name)]
        if known:
            text = [f"evaluation at step {one['step']}" for one in known]
            kls, scores = [one["eval/kl"] for one in known], [one[name] for one in known]
            traces.append(make_trace(name, kls, scores, kind="points", text=text))
    findings = list(_findings(run, steps))
    traces += [label for _, label in findings]
    yield Paragraphs([_ABOUT_OVEROPTIMIZATION])
    yield Plot("Score against KL, step by step", traces, "KL, nats per response", "score", large=True)
    texts = [text for text, _ in findings] or [
        "No sign that the score rises only by leaving the reference."
        if len(steps) >= MIN_STEPS
        else f"{len(steps)} steps are too few to tell whether the score rises only by leaving the reference."
    ]
    yield Paragraphs(texts)


def _findings(run: RunRecords, steps: Sequence[Record]) -> Iterator[tuple[str, Trace]]:
    """Yield what is wrong, with a trace that labels the point in the plot."""
    scores, kls, coefs = ([step.get(name, 0.0) for step in steps] for name in ("score", "kl", "kl_coef"))
    index = find_overoptimization(scores, kls, coefs)
    if index is not None:
        step = steps[index]
        text = (
            f"From step {step['step']} on (KL {short(step['kl'])}) the score rises only by leaving the reference: "
            "each further nat costs more than the score gains. Read the responses; raise ppo.kl_coef or stop there."
        )
        yield text, _label(f"only by leaving the reference, from step {step['step']}", step["kl"], step["score"])
    gold, scores_by_prompt = _gold_evaluations(run)
    peak = find_gold_peak([one["eval/score"] for one in gold], scores_by_prompt) if gold else None
    if peak is not None:
        best = gold[peak]
        text = (
            f"The gold score was highest at step {best['step']} (KL {short(best['eval/kl'])}). At the last evaluation "
            "it is lower (paired by prompt, 95 %), and the score that PPO optimises is higher: it is over-optimised."
        )
        yield text, _label(f"gold score highest, step {best['step']}", best["eval/kl"], best["eval/gold_score"])


def _label(text: str, kl: float, score: float) -> Trace:
    return make_trace(text, [kl], [score], kind="labels", text=[text])


def _gold_evaluations(run: RunRecords) -> tuple[list[Record], list[list[float]]]:
    """Return evaluations and their gold scores by prompt; none if the prompts differ."""
    evaluated = [one for one in run.evaluations if has_values(one, "eval/score", "eval/gold_score", "eval/kl")]
    scores = [run.samples.gold_at(one["step"]) for one in evaluated]
    is_comparable = len({len(row) for row in scores}) == 1 and len(scores[0]) > 0
    return (evaluated, scores) if is_comparable else ([], [])


def _distributions(run: RunRecords) -> Iterator[Plot]:
    share = "share of responses"
    if all(run.rollouts):
        names = [_step_range(steps[0]["step"], steps[-1]["step"]) for steps in run.rollouts]
        for title, key, unit in (
            ("Responses in training", "scores", "score"),
            ("KL of the responses", "kl", "nats per response"),
            ("Length of the responses", "lengths", "tokens"),
        ):
            values = [[value for step in steps for value in step[key] if value is not None] for steps in run.rollouts]
            yield histogram(title, dict(zip(names, values, strict=True)), unit, share)
    for mode in _MODES:
        scores = {
            name: [one["score"] for one in run.responses(stage, mode) if has_values(one, "score")]
            for stage, name in (("before", "before training"), ("now", "now"))
        }
        if all(scores.values()):
            yield histogram(f"Held-out responses, {mode}", scores, "score", share)


def _step_range(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _held_out(run: RunRecords) -> Iterator[Plot | Responses]:
    yield from draw_charts([WIN_RATE], [], [one for one in run.evaluations if one["step"] > 0])
    rows: list[Record] = []
    total = 0
    for mode in _MODES:
        before, now = run.responses("before", mode), run.responses("now", mode)
        total += len(before)
        now = now if len(now) == len(before) else [{} for _ in before]
        rows += [_response_row(mode, *pair) for pair in zip(before, now, strict=True)][:_MAX_RESPONSES]
    if rows:
        note = "" if len(rows) == total else f"{len(rows)} of {total}; all of them are in samples.jsonl."
        yield Responses("Responses before training and now", rows, note)


def _response_row(mode: str, before: Record, now: Record) -> Record:
    row = {"mode": mode, "prompt": before["prompt"], "before": before["response"], "now": now.get("response")}
    row |= {"score_before": before["score"], "score_now": now.get("score")}
    row |= {"gold_before": before.get("gold_score"), "gold_now": now.get("gold_score")}
    return row | {"tokens": now.get("tokens", []), "kl": now.get("kl", [])}
