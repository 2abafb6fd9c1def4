import json
import logging

import pytest

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import RunConfig
from rlhf_cli.engine.roofline import Work
from rlhf_cli.report.check_table import Check
from rlhf_cli.report.reporter import Reporter
from rlhf_cli.report.run_dir import RunDir
from rlhf_cli.system.text import printable


@pytest.fixture
def run_dir(tmp_path):
    return RunDir(RunConfig(name="a", output_dir=str(tmp_path)), "train-ppo", ["conf=tiny", "x=a b"], "run: {}\n", 2)


def opened(run_dir, num_steps, headline):
    report = Reporter(speaks=True)
    report.open(run_dir, num_steps, headline)
    return report


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_folder_records_what_was_run(run_dir):
    record = json.loads((run_dir.folder / "run.json").read_text())
    assert record["command"] == "rlhf train-ppo conf=tiny 'x=a b'"
    assert record["world_size"] == 2
    assert record["versions"]["torch"].startswith("2.13.0")
    assert (run_dir.folder / "config.yaml").read_text() == "run: {}\n"


def test_an_existing_folder_is_refused(run_dir):
    with pytest.raises(InputError, match="never overwritten"):
        RunDir(RunConfig(name="a", output_dir=str(run_dir.folder.parent)), "train-ppo", [], "", 1)


def test_a_step_is_one_line_with_metrics_times_and_speed(run_dir, capsys):
    report = opened(run_dir, 10, ("score",))
    with report.time("rollout"):
        pass
    report.log(1, {"score": 0.5, "kl": 0.1}, num_tokens=100)
    (record,) = lines(run_dir.folder / "metrics.jsonl")
    assert record["step"] == 1
    assert record["score"] == 0.5
    assert record["time/step"] == record["time/rollout"]
    assert record["tokens_per_s"] == pytest.approx(100 / record["time/step"])
    assert capsys.readouterr().out.startswith("step 1/10  score 0.5")


def test_the_work_of_phases_becomes_speed_and_share_of_the_peak(run_dir):
    """10 s of rollout and 30 s of update, relative to 100 FLOP/s. Without a peak there is no share."""
    report, work = opened(run_dir, 2, ()), {"rollout": Work(500, 70), "update": Work(300, 90)}
    for step in (1, 2):
        report._seconds = {"rollout": 10.0, "update": 30.0}
        report.log(step, {}, num_tokens=40, work=work)
        report.measure_against(100.0)
    first, second = lines(run_dir.folder / "metrics.jsonl")
    speeds = {"perf/rollout_tokens_per_s": 7.0, "perf/update_tokens_per_s": 3.0}
    shares = {"perf/mfu_rollout": 0.5, "perf/mfu_update": 0.1, "perf/mfu": 0.2}
    assert {name: value for name, value in first.items() if name.startswith("perf/")} == speeds
    assert {name: value for name, value in second.items() if name.startswith("perf/")} == pytest.approx(speeds | shares)


def test_other_ranks_are_silent(capsys):
    report = Reporter(speaks=False)
    report.say("hello")
    report.samples_once("before", [{"a": 1}])
    assert capsys.readouterr().out == ""


def test_a_resumed_run_removes_the_steps_it_repeats(run_dir):
    for step in (1, 2, 3):
        run_dir.append("metrics.jsonl", {"step": step})
    for stage in ("before", "after"):
        run_dir.append("samples.jsonl", {"stage": stage})
    run_dir.forget_after(9, 2)
    assert lines(run_dir.folder / "samples.jsonl") == [{"stage": "before"}]
    assert [record["step"] for record in lines(run_dir.folder / "metrics.jsonl")] == [1, 2]


def test_text_from_data_cannot_control_the_terminal(run_dir, capsys):
    opened(run_dir, 1, ()).say("[red]x[/red]")
    assert capsys.readouterr().out == "[red]x[/red]\n"
    assert printable("a\x1b[1m\n\tb") == "a\ufffd[1m\n\tb"
    assert printable("x\u202ey\u2066\u2028\r") == "x\ufffdy\ufffd\ufffd\ufffd"


def test_spaces_and_joiners_of_other_scripts_are_kept():
    text = "\u6771\u4eac\u3000\u5927\u962a a\u00a0b \u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f4bb"
    assert printable(text) == text
    assert printable("a\r\nb") == "a\nb"


def test_nan_and_infinity_become_null(run_dir):
    run_dir.append("metrics.jsonl", {"step": 1, "grad_norm": float("inf"), "loss": float("nan")})
    assert lines(run_dir.folder / "metrics.jsonl") == [{"step": 1, "grad_norm": None, "loss": None}]


def test_printed_lines_are_logged_too(run_dir, caplog):
    with caplog.at_level(logging.INFO, logger="rlhf"):
        report = Reporter(speaks=True)
        report.say("an early line")
        report.open(run_dir, 1, ())
        report.say("a line")
    assert caplog.messages == ["an early line", "a line"]


def events(run_dir):
    return [(one["step"], one["kind"], one["text"]) for one in lines(run_dir.folder / "events.jsonl")]


def test_early_warnings_of_a_resumed_run_are_recorded_at_its_first_step(run_dir):
    """A resumed run first removes what it will write again."""
    report = Reporter(speaks=True)
    report.warn("not enough room")
    report.open(run_dir, 10, ())
    report.event("resume", "resumed after step 4")
    assert not (run_dir.folder / "events.jsonl").exists()
    report.began(4)
    with report.time("rollout"):
        pass
    report.log(5, {}, num_tokens=1)
    report.warn("kl 12", kind="guard")
    report.warn_once("kl 12")
    report.warn_once("kl 12")
    assert events(run_dir) == [
        (4, "warning", "not enough room"),
        (4, "resume", "resumed after step 4"),
        (5, "guard", "kl 12"),
        (5, "warning", "kl 12"),
    ]


def test_checks_and_the_plan_are_written(run_dir):
    report = Reporter(speaks=True)
    report.planned(["prompts a step: 8"], ["by plan it does not fit"])
    report.checks([Check("masks", 0.5, 1.0, "look"), Check("same", 2.0, 1.0, "look again")], 1.0)
    report.open(run_dir, 1, ())
    plan, checks = (json.loads((run_dir.folder / name).read_text()) for name in ("plan.json", "checks.json"))
    assert plan == {"lines": ["prompts a step: 8", "warning: by plan it does not fit"]}
    assert [(one["name"], one["status"]) for one in checks["checks"]] == [("masks", "ok"), ("same", "FAIL")]


def test_the_seconds_of_an_evaluation_are_logged_once(run_dir):
    report = opened(run_dir, 4, ())
    with report.evaluating():
        pass
    report.log_eval(2, {"eval/score": 1.0})
    report.log_eval(2, {"calibration/std": 1.0})
    first, second = lines(run_dir.folder / "metrics.jsonl")
    assert first.keys() == {"step", "eval/score", "time/evaluate"}
    assert second.keys() == {"step", "calibration/std"}
    assert report.has_logged(2, "eval/score")
    assert not report.has_logged(3, "eval/score")
