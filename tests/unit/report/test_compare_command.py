"""The comparison of runs."""

import json

import pytest

from rlhf_cli.cli import main
from rlhf_cli.config.errors import InputError
from rlhf_cli.report.compare_runs import Comparison
from tests.unit.report.synthetic_runs import answer, pair, ppo_run, reward_run, write_lines


@pytest.fixture
def runs(tmp_path):
    """Two PPO runs: the second has other options, and greedy answers to the same prompts that score 1 more."""
    first, second = ppo_run(tmp_path / "a", 12, every=4), ppo_run(tmp_path / "b", 20)
    config = json.dumps({"run": {"name": "b"}, "ppo": {"num_steps": 20, "kl_coef": 0.1}, "model": {"path": None}})
    (second / "config.yaml").write_text(config)
    rows = [answer("after", "greedy", n, score=n + 2.0) for n in range(4)]
    write_lines(second / "samples.jsonl", [*rows, answer("after", "greedy", 9, score=100.0)])
    return first, second


def test_only_options_that_differ_are_shown(runs):
    found = Comparison(runs)
    assert {name: values for name, *values in found.options.rows} == {
        "ppo.kl_coef": ["0.05", "0.1"],
        "ppo.num_steps": ["12", "20"],
        "run.name": ["a", "b"],
    }


def test_final_metrics_are_means_of_the_last_steps(runs):
    """Of ten steps. A metric that a run does not have is None."""
    found = {name: values for name, *values in Comparison(runs).metrics.rows}
    assert found["steps"] == [12, 20]
    kl = sum(30 * (step / 12) ** 2 for step in range(3, 13)) / 10
    assert found["kl, mean of the last 10 steps"][0] == pytest.approx(kl)
    assert found["eval/win_rate"] == [pytest.approx(0.9), None]


def test_differences_are_paired_on_shared_prompts(runs):
    """Every shared prompt scores 1 more: the interval has no width. The prompt of one run alone does not count."""
    assert Comparison(runs).paired.rows == [("prompts, greedy score", "b", 4, "+1", "+1 to +1")]


def test_a_prompt_that_occurs_twice_is_paired_by_its_occurrence(tmp_path):
    first, second = ppo_run(tmp_path / "a", 3), ppo_run(tmp_path / "b", 3)
    for folder, scores in ((first, (0.0, 10.0)), (second, (1.0, 12.0))):
        write_lines(folder / "samples.jsonl", [answer("after", "greedy", 0, score=score) for score in scores])
    [found] = Comparison([first, second]).paired.rows
    assert found[2:4] == (2, "+1.5")


def test_reward_models_are_compared_on_shared_pairs(tmp_path):
    """Right, wrong, tied against right, right, right: 0, 1 and a half, a mean of a half."""
    folders = []
    for name, margins in (("a", (1.0, -1.0, 0.0)), ("b", (2.0, 3.0, 1.0))):
        folder = reward_run(tmp_path / name)
        write_lines(folder / "pairs.jsonl", [pair(m, 0.0, prompt=str(n)) for n, m in enumerate(margins)])
        folders.append(folder)
    [found] = Comparison(folders).paired.rows
    assert (found[0], *found[2:4]) == ("pairs, accuracy", 3, "+0.5")


def test_scores_of_different_reward_models_come_with_a_note(runs):
    assert Comparison(runs).notes == []
    config = json.loads((runs[1] / "config.yaml").read_text()) | {"reward_model": {"path": "other"}}
    (runs[1] / "config.yaml").write_text(json.dumps(config))
    assert Comparison(runs).notes == [
        "reward_model.path differs: the scores are from different reward models and not on one scale."
    ]


def test_runs_have_different_names(tmp_path):
    one, two = ppo_run(tmp_path / "x" / "tiny", 3), ppo_run(tmp_path / "y" / "tiny", 3)
    assert list(Comparison([one, two]).runs) == ["x/tiny", "y/tiny"]
    assert len(Comparison([one, one]).runs) == 2


def test_what_cannot_be_compared(tmp_path, runs):
    with pytest.raises(InputError, match="two or more run folders, got 1"):
        Comparison(runs[:1])
    with pytest.raises(InputError, match="are runs of PPO and a reward model; compare runs of one kind"):
        Comparison([runs[0], reward_run(tmp_path / "rm")])


def test_the_page_overlays_every_curve(runs):
    sections = {one.title: one.blocks for one in Comparison(runs).sections()}
    assert list(sections) == [
        "What differs",
        "Final metrics",
        "Training",
        "Evaluations",
        "Over-optimisation",
        "Speed and memory",
    ]
    score = sections["Training"][0]
    assert (score.title, [trace["name"] for trace in score.traces]) == ("score", ["a", "b"])
    assert [trace["name"] for trace in sections["Evaluations"][0].traces] == ["a"]


def test_the_command_prints_and_writes(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("comparison: compare.html\n")
    for text in ("Options that differ", "ppo.kl_coef", "Final metrics", "eval/win_rate", "+1 to +1"):
        assert text in out
    assert "<h1>a and b</h1>" in (tmp_path / "compare.html").read_text()
    assert main(["compare", "a", "missing"]) == 2
    assert main(["compare", "--help"]) == 0
