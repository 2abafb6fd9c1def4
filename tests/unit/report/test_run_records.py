"""A run folder can be read in any state."""

import pytest

from rlhf_cli.config.config_diff import flat
from rlhf_cli.config.errors import InputError
from rlhf_cli.report.run_records import RunRecords
from tests.unit.report.synthetic_runs import answer, begun, ppo_run, reward_run, write_lines


def test_a_complete_run(tmp_path):
    run = RunRecords(ppo_run(tmp_path / "a", 20, every=5))
    assert (run.name, run.is_ppo, len(run.steps), len(run.evaluations)) == ("a", True, 20, 4)
    assert [one["step"] for one in run.evaluations] == [5, 10, 15, 20]
    assert [[one["step"] for one in ends] for ends in run.rollouts] == [[1, 2], [19, 20]]
    assert (len(run.events), len(run.checks)) == (1, 1)
    assert run.unreadable == {}
    assert not RunRecords(reward_run(tmp_path / "rm")).is_ppo


def test_only_the_first_and_last_rollouts_are_read(tmp_path):
    """Of 5,000 steps, the first and the last 200. Of one step, none. Incomplete lines are not rollouts."""
    long = RunRecords(ppo_run(tmp_path / "long", 5000)).rollouts
    assert [(len(ends), ends[0]["step"], ends[-1]["step"]) for ends in long] == [(200, 1, 200), (200, 4801, 5000)]
    assert RunRecords(ppo_run(tmp_path / "one", 1)).rollouts == ([], [])
    folder = ppo_run(tmp_path / "torn", 3)
    with (folder / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 4, "sco')
    assert [[one["step"] for one in ends] for ends in RunRecords(folder).rollouts] == [[1], [3]]
    (folder / "rollouts.jsonl").unlink()
    assert RunRecords(folder).rollouts == ([], [])


def test_metrics_of_one_step_are_one_evaluation(tmp_path):
    folder = begun(tmp_path / "a", "train-rm", "train: {}\n")
    write_lines(folder / "metrics.jsonl", [{"step": 4, "eval/loss": 1.0}, {"step": 4, "calibration/std": 1.0}])
    assert RunRecords(folder).evaluations == [{"step": 4, "eval/loss": 1.0, "calibration/std": 1.0}]


def test_responses_now_are_the_newest(tmp_path):
    folder = begun(tmp_path / "a", "train-ppo", "ppo: {}\n")
    rows = [answer("before", "greedy", 0), answer("during", "greedy", 0, step=2), answer("during", "greedy", 1, step=4)]
    write_lines(folder / "samples.jsonl", rows)
    assert RunRecords(folder).responses("now", "greedy") == rows[2:]
    rows += [answer("after", "greedy", 2, step=4), answer("after", "sampled", 3, step=4)]
    write_lines(folder / "samples.jsonl", rows)
    assert RunRecords(folder).responses("now", "greedy") == rows[3:4]
    assert RunRecords(folder).responses("before", "greedy") == rows[:1]
    assert RunRecords(folder).responses("before", "sampled") == []


def test_an_incomplete_evaluation_is_not_the_newest(tmp_path):
    folder = begun(tmp_path / "a", "train-ppo", "ppo: {}\n")
    rows = [answer(stage, "greedy", n, step=step) for stage, step in (("before", 0), ("during", 2)) for n in (0, 1)]
    write_lines(folder / "samples.jsonl", [*rows, answer("during", "greedy", 0, step=4)])
    assert RunRecords(folder).responses("now", "greedy") == rows[2:]


def test_samples_without_a_step_are_read(tmp_path):
    folder = begun(tmp_path / "a", "train-ppo", "ppo: {}\n")
    old = [{k: v for k, v in answer(stage, "greedy", 0).items() if k != "step"} for stage in ("before", "after")]
    write_lines(folder / "samples.jsonl", old)
    assert RunRecords(folder).responses("now", "greedy") == old[1:]


@pytest.mark.parametrize(
    "torn", [b'{"step": 3', b"\x00\x00\x00\n", b"[1]\n", b'{"loss": 1}\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n"]
)
def test_lines_damaged_by_a_crash_are_skipped_and_counted(tmp_path, torn):
    folder = begun(tmp_path / "a", "train-rm", "train: {}\n")
    good = b'{"step": 1, "time/step": 1.0}\n'
    (folder / "metrics.jsonl").write_bytes(good + torn + (good if torn.endswith(b"\n") else b""))
    run = RunRecords(folder)
    assert {step["step"] for step in run.steps} == {1}
    assert run.unreadable == ({"metrics.jsonl": 1} if torn.endswith(b"\n") else {})


@pytest.mark.parametrize("name", ["summary.json", "status.json", "checks.json", "plan.json", "run.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"a"'])
def test_a_damaged_document_is_ignored(tmp_path, name, content):
    folder = ppo_run(tmp_path / "a", 3)
    (folder / name).write_text(content)
    assert len(RunRecords(folder).steps) == 3


def test_a_folder_that_is_not_a_run_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such run folder"):
        RunRecords(tmp_path / "missing")
    with pytest.raises(InputError, match=r"not a run folder: it has no run.json or no config.yaml"):
        RunRecords(tmp_path)
    folder = ppo_run(tmp_path / "a", 3)
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"config.yaml: damaged"):
        RunRecords(folder)


def test_a_run_that_has_only_begun(tmp_path):
    run = RunRecords(begun(tmp_path / "a", "train-ppo", "ppo: {}\n"))
    assert (run.steps, run.evaluations, run.responses("now", "greedy")) == ([], [], [])
    assert run.status["state"] == "running"


def test_options_by_their_keys():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, 2], "e": None}) == {"a.b": 1, "a.c": {}, "d": [1, 2], "e": None}


def test_reading_changes_nothing(tmp_path):
    folder = ppo_run(tmp_path / "a", 3)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    RunRecords(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
