"""The report file: its content, and that text from data does no harm."""

import base64
import gzip
import json
import re

import pytest

from rlhf_cli.cli import main
from rlhf_cli.report.html.blocks import short
from rlhf_cli.report.html.html_page import leave_report, write_report
from rlhf_cli.report.html.plots import MAX_POINTS, Plot, histogram, make_trace, metric_trace, thinned
from rlhf_cli.report.html.ppo_page import ppo_sections
from rlhf_cli.report.html.reward_page import reward_sections
from rlhf_cli.report.html.setup_sections import format_duration
from rlhf_cli.report.run_records import RunRecords
from tests.unit.report.synthetic_runs import answer, begun, pair, ppo_run, reward_run, write_lines

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m{{ 7*7 }} &amp; \u202e '\""


def unpacked(html, key):
    packed = re.search(f'id="{key}">([^<]*)<', html)[1]
    return gzip.decompress(base64.b64decode(packed)).decode()


def data(html):
    return json.loads(unpacked(html, "data"))


def titles(sections):
    return {section.title: [getattr(block, "title", "") for block in section.blocks] for section in sections}


def test_a_ppo_run_has_every_section(tmp_path):
    found = titles(ppo_sections(RunRecords(ppo_run(tmp_path / "a", 40, every=10))))
    assert list(found) == [
        "Overview",
        "Training",
        "Over-optimisation",
        "First and last steps",
        "Held-out prompts",
        "Speed and memory",
        "Events",
        "Setup",
    ]
    assert {"Score", "KL to the reference", "Reward", "Response length", "Entropy", "Value loss"} <= set(
        found["Training"]
    )
    assert "Clipped tokens" in found["Training"]
    assert {"Responses in training", "Held-out responses, greedy"} <= set(found["First and last steps"])
    assert found["Held-out prompts"][-1] == "Responses before training and now"
    assert {"Time by phase", "Memory of rank 0"} <= set(found["Speed and memory"])
    assert {"Planned batches and memory", "Checks before training", "Configuration"} <= set(found["Setup"])


def test_a_reward_model_run_has_every_section(tmp_path):
    found = titles(reward_sections(RunRecords(reward_run(tmp_path / "a"))))
    assert list(found) == ["Overview", "Training", "Held-out pairs", "Where it is wrong", "Speed and memory", "Setup"]
    held_out = found["Held-out pairs"]
    assert re.fullmatch(r"Calibration: ECE 0\.\d{3}, Brier 0\.\d{3}", held_out.pop(3))
    assert held_out == [
        "",
        "Accuracy and its baseline",
        "Margins",
        "Accuracy by length gap",
        "Accuracy by category",
    ]


def test_sections_without_data_are_left_out(tmp_path):
    assert list(titles(ppo_sections(RunRecords(begun(tmp_path / "a", "train-ppo", "ppo: {}\n"))))) == [
        "Overview",
        "Setup",
    ]
    assert list(titles(reward_sections(RunRecords(begun(tmp_path / "b", "train-rm", "train: {}\n"))))) == [
        "Overview",
        "Setup",
    ]


def test_a_metric_without_a_chart_is_drawn_too(tmp_path):
    folder = begun(tmp_path / "a", "train-ppo", "ppo: {}\n")
    write_lines(folder / "metrics.jsonl", [{"step": 1, "time/step": 1.0, "reward/brief": 0.5}])
    assert titles(ppo_sections(RunRecords(folder)))["Other metrics"] == ["reward/brief"]


def test_overoptimization_is_marked(tmp_path):
    """The objective of this run is highest before half way, its gold score at 2 - 3.2 t = 0: near step 60 of 100."""
    sections = {one.title: one for one in ppo_sections(RunRecords(ppo_run(tmp_path / "a", 100, every=10)))}
    _, plot, findings = sections["Over-optimisation"].blocks
    labels = [trace["name"] for trace in plot.traces[-2:]]
    assert re.fullmatch(r"only by leaving the reference, from step [345]\d", labels[0])
    assert labels[1] == "gold score highest, step 60"
    assert "each further nat costs more than the score gains" in findings.lines[0]
    assert "The gold score was highest at step 60 (KL " in findings.lines[1]
    short_run = {one.title: one for one in ppo_sections(RunRecords(ppo_run(tmp_path / "b", 5)))}
    assert short_run["Over-optimisation"].blocks[2].lines == [
        "5 steps are too few to tell whether the score rises only by leaving the reference."
    ]


def test_a_file_needs_nothing_else(tmp_path):
    html = write_report(ppo_run(tmp_path / "a", 5)).read_text()
    assert "default-src 'none'" in html
    assert not re.search(r'(?:src|href)="(?!#|data:)', html)
    assert "plotly.js v" in unpacked(html, "plotly")[:200]
    again = write_report(tmp_path / "a").read_text()
    assert again == html


def test_five_thousand_steps_stay_under_five_megabytes_and_more_do_not_grow(tmp_path):
    sizes = [len(write_report(ppo_run(tmp_path / str(n), n)).read_bytes()) for n in (5_000, 12_000)]
    assert sizes[0] < 5e6
    assert sizes[1] < 1.2 * sizes[0]


def hostile_runs(tmp_path):
    """A PPO run and a reward-model run with hostile text in every place that data or people fill."""
    ppo = ppo_run(tmp_path / "ppo<b>", 12)
    rows = [
        answer(stage, "greedy", 0, prompt=HOSTILE, response=HOSTILE, tokens=[HOSTILE], kl=[1.0])
        for stage in ("before", "after")
    ]
    write_lines(ppo / "samples.jsonl", rows)
    write_lines(ppo / "events.jsonl", [{"step": 1, "kind": HOSTILE, "text": HOSTILE, "time": HOSTILE}])
    (ppo / "plan.json").write_text(json.dumps({"lines": [HOSTILE]}))
    check = {"name": HOSTILE, "figure": 0.0, "bound": 1.0, "advice": HOSTILE, "warns": False, "status": HOSTILE}
    (ppo / "checks.json").write_text(json.dumps({"checks": [check]}))
    run = {"command": HOSTILE, "started": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    (ppo / "run.json").write_text(json.dumps(run))
    status = {"state": HOSTILE, "step": 1, "reason": HOSTILE, "host": "x", "pid": 1}
    (ppo / "status.json").write_text(json.dumps(status))
    (ppo / "config.yaml").write_text(
        json.dumps({"ppo": {"num_steps": 12}, "run": {"name": HOSTILE, HOSTILE: [HOSTILE]}})
    )
    with (ppo / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 13, "time/step": 1.0, HOSTILE: 1.0}) + "\n")
    rm = reward_run(tmp_path / "rm")
    texts = {"prompt": HOSTILE, "chosen": HOSTILE, "rejected": HOSTILE}
    write_lines(rm / "pairs.jsonl", [{**pair(-1.0, 1.0, gap=n, category=HOSTILE), **texts} for n in range(9)])
    return ppo, rm


def test_text_from_data_stays_text(tmp_path):
    for folder in hostile_runs(tmp_path):
        html = write_report(folder).read_text()
        assert html.count("<script") == 3
        assert html.count("</script>") == 3
        assert "<img" not in html
        assert "\x1b" not in html
        assert "\u202e" not in html
        assert "{{ 7*7 }}" in html
        assert "\x1b" not in unpacked(html, "data")


def test_values_that_are_not_numbers_are_gaps(tmp_path):
    folder = ppo_run(tmp_path / "a", 12)
    bad = {"step": 13, "time/step": None, "score": None, "kl": True, "reward": "high", "entropy": None}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(bad) + "\n")
    html = write_report(folder).read_text()
    [score] = [plot for plot in data(html)["plots"] if plot["title"] == "Score"]
    assert score["data"][0]["y"][-1] is None


def test_a_run_never_fails_because_of_its_report(tmp_path):
    folder = ppo_run(tmp_path / "a", 3)
    assert leave_report(folder) == f"report: {folder / 'report.html'}"
    write_lines(folder / "samples.jsonl", [{**answer("before", "greedy", 0), "prompt": None}])
    assert leave_report(folder).startswith(("report: ", "no report: "))
    assert leave_report(tmp_path / "gone").startswith("no report: InputError: ")
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize("bad", [None, float("nan"), 1e308, -1e308])
def test_a_damaged_value_does_not_break_the_report(tmp_path, bad):
    """In any column of any file. NaN is null in the files of a run."""
    ppo, rm = ppo_run(tmp_path / "ppo", 12, every=4), reward_run(tmp_path / "rm")
    value = None if bad != bad else bad  # NaN
    for name in ("score", "kl", "gold_score"):
        rows = [answer(stage, "greedy", n, **{name: value}) for stage in ("before", "after") for n in range(2)]
        write_lines(ppo / "samples.jsonl", rows)
        html = write_report(ppo).read_text()
        assert "Responses before training and now" in html
        assert "cannot be shown" not in html
    write_lines(
        ppo / "rollouts.jsonl", [{"step": n, "scores": [value, 1.0], "kl": [value], "lengths": [3]} for n in (1, 2)]
    )
    summary = {"held_out": {"greedy": {"score_before": value, "score_after": 1.0, "difference_mean": value}}}
    (ppo / "summary.json").write_text(json.dumps(summary))
    assert "cannot be shown" not in write_report(ppo).read_text()
    for name in ("score_chosen", "log_odds", "tokens_chosen"):
        write_lines(rm / "pairs.jsonl", [{**pair(1.0, 0.0), name: value}, pair(0.0, 1.0), pair(2.0, 1.0)])
        html = write_report(rm).read_text()
        assert "cannot be shown" not in html
        assert "pairs.jsonl: 1 lines could not be read" in html


def test_a_broken_section_does_not_affect_the_others(tmp_path):
    folder = ppo_run(tmp_path / "a", 12)
    write_lines(folder / "rollouts.jsonl", [{"step": n, "scores": 5, "kl": [], "lengths": []} for n in (1, 2)])
    html = write_report(folder).read_text()
    assert html.count("cannot be shown: TypeError: ") == 1
    assert "Responses before training and now" in html


def test_no_bin_of_a_histogram_contains_0():
    """Margins above 0 are correct and must not share a bar with wrong ones."""
    plot = histogram("t", {"a": [-0.3, 0.2, *[0.9] * 9]}, "x", "share")
    x, y = plot.traces[0]["x"], plot.traces[0]["y"]
    assert min(abs(middle) for middle in x) == pytest.approx((x[1] - x[0]) / 2)
    assert sum(y) == pytest.approx(1.0, abs=1e-4)


def test_all_evaluations_of_a_reward_model_are_drawn_on_one_scale(tmp_path):
    folder = reward_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 12, "calibration/std": 1.0, "eval/margin": 9.0, "eval/loss": 9.0}) + "\n")
    write_lines(folder / "pairs.jsonl", [pair(1.0, 0.0, log_odds=4.0)])
    loss = {one.title: one for one in reward_sections(RunRecords(folder))[1].blocks}
    assert loss["Margin"].traces[-1]["y"][-1] == 4.0
    assert loss["Loss"].traces[-1]["y"][-1] == pytest.approx(0.01815, abs=1e-5)


def test_a_long_series_is_drawn_as_means():
    x, y = thinned(list(range(2 * MAX_POINTS)), [float(n % 2) for n in range(2 * MAX_POINTS)])
    assert len(x) == len(y) == MAX_POINTS
    assert set(y) == {0.5}
    assert (x[0], x[-1]) == (1, 2 * MAX_POINTS - 1)
    assert thinned([1, 2], [None, 3.0]) == ([1, 2], [None, 3.0])
    assert set(thinned(list(range(3 * MAX_POINTS)), [None] * 3 * MAX_POINTS)[1]) == {None}


def test_the_trace_of_a_metric_with_its_interval():
    records = [{"step": 1, "a": 0.5, "a_low": 0.25, "a_high": 0.75}, {"step": 2}, {"step": 3, "a": float("nan")}]
    trace = metric_trace(records, "a")
    assert (trace["x"], trace["y"]) == ([1, 3], [0.5, None])
    assert (trace["error_y"]["arrayminus"], trace["error_y"]["array"]) == ([0.25, None], [0.25, None])
    assert metric_trace(records, "b") is None
    assert metric_trace([{"step": 1, "a": None}], "a") is None


def test_a_plot_in_words():
    words = Plot("t", [make_trace("score", [1, 2, 3], [0.5, None, -1.25]), make_trace("kl", [1], [None])]).summary
    assert words == "score: 0.5 at 1, -1.25 at 3; lowest -1.25 at 3, highest 0.5 at 1. kl: no values."


def test_shares_of_a_histogram_by_hand():
    """Twelve bins of width 1 over [0, 12]; the upper edge belongs to the last. Integers are in the middle of bins."""
    plot = histogram("t", {"a": [0.0, 0.5, 11.5, 12.0]}, "x", "share")
    assert plot.traces[0]["y"] == [0.5, *[0.0] * 10, 0.5]
    assert plot.traces[0]["x"][0] == 0.5
    whole = histogram("t", {"a": [3, 3, 5], "b": [4]}, "x", "share")
    assert (whole.traces[0]["x"], whole.traces[0]["y"]) == ([3.0, 4.0, 5.0], [0.66667, 0.0, 0.33333])
    assert whole.traces[1]["y"] == [0.0, 1.0, 0.0]
    assert sum(histogram("t", {"a": [7.0] * 5}, "x", "share").traces[0]["y"]) == 1.0


def test_formats_of_numbers():
    assert [short(value) for value in (None, 3, 0.123456, True, "a\x1bb", float("inf"))] == [
        "-",
        "3",
        "0.1235",
        "True",
        "a\ufffdb",
        "not finite",
    ]
    assert [format_duration(seconds) for seconds in (3.21, 95, 7300)] == ["3.2 s", "1 min 35 s", "2 h 1 min"]


def test_the_command(tmp_path, capsys, monkeypatch):
    folder = ppo_run(tmp_path / "a", 3)
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(folder), "--output", "b.html"]) == 0
    assert (tmp_path / "b.html").read_bytes() == (folder / "report.html").read_bytes()
    assert main(["report", "--help"]) == 0
    assert capsys.readouterr().out.endswith("or have failed.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "report needs one run folder, got 0; usage: rlhf report RUN_DIR [--output FILE]"),
        (["a", "b"], "report needs one run folder, got 2"),
        (["missing"], "missing: no such run folder"),
        (["a", "--output"], "argument --output: expected one argument; usage: rlhf report"),
        (["a", "--output", "no/b.html"], "no/b.html: its folder does not exist"),
        (["a", "--output=a"], "a: --output needs a file that ends in .html"),
        (["a", "--output=a/metrics.jsonl"], "a/metrics.jsonl: --output needs a file that ends in .html"),
        (["a", "--html"], "unknown option --html"),
        (["a", "--output=a.html", "--output=b.html"], "--output was given twice"),
        (["locked"], "a file: cannot be read: Input/output error"),
    ],
)
def test_wrong_arguments_are_a_one_line_error(tmp_path, capsys, monkeypatch, words, said):
    ppo_run(tmp_path / "a", 3)
    (ppo_run(tmp_path / "locked", 3) / "metrics.jsonl").unlink()
    (tmp_path / "locked/metrics.jsonl").symlink_to("/proc/self/mem")  # root may read all but this
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rlhf: error: {said}")
    assert error.count("\n") == 1
