import json
from itertools import combinations

import pytest

from rlhf_cli.cli import main
from rlhf_cli.use.best_of_n import best_of, expected_best, kl_of_best
from rlhf_cli.use.trained_policy import TrainedPolicy

SCORES = [0.3, -1.0, 2.5, 2.5, 0.0, 4.0, -0.2]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_the_estimate_is_the_mean_over_all_choices(n):
    best = [max(choice) for choice in combinations(SCORES, n)]
    assert expected_best(SCORES, n) == pytest.approx(sum(best) / len(best), abs=1e-12)


def test_the_estimate_is_unbiased():
    """Scores are 0 or 1 with probability 1/2: the best of 2 is 1 with probability 3/4, whatever
    3 are drawn.
    """
    draws = [[one >> place & 1 for place in range(3)] for one in range(8)]
    assert sum(expected_best(draw, 2) for draw in draws) / 8 == pytest.approx(0.75, abs=1e-12)


def test_the_kl_of_the_best_of_n():
    """log 4 - 3/4 = 1.386294 - 0.75; of one answer it is 0."""
    assert kl_of_best(1) == 0
    assert kl_of_best(4) == pytest.approx(0.6362943611, abs=1e-9)


def test_intervals_are_over_prompts():
    """Two prompts of two answers; their bests are 2 and 6, and so is what bootstrap draws lie
    between.
    """
    found = best_of([1.0, 2.0, 6.0, 4.0], num=2, n=2)
    assert (found.mean, found.low, found.high) == (4, 2, 6)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello?"}\n{"prompt": "Why?"}\n')
    (tmp_path / "rewards.py").write_text("def length(responses): return [len(one) for one in responses]\n")
    return tmp_path


def test_the_table_holds_the_estimates_and_the_policy(ppo_run, here, capsys):
    words = ["best-of-n", str(ppo_run.parent / "base"), "--prompts", "prompts.jsonl", "--reward", "rewards.py:length"]
    assert main([*words, "--n", "1,3", "--samples", "4", "--policy", str(ppo_run), "--out", "out.jsonl"]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    records = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    scores = [one["score"] for one in records]
    assert len(scores) == 8
    assert [one["num_tokens"] <= 12 for one in records] == [True] * 8  # drawn as the policy's run does
    assert rows[0][:3] == ["best of 1", "0.000", f"{sum(scores) / 8:.3f}"]
    best = [max(choice) for start in (0, 4) for choice in combinations(scores[start : start + 4], 3)]
    assert rows[1][:3] == ["best of 3", "0.432", f"{sum(best) / 8:.3f}"]
    assert float(rows[2][1]) != 0  # other weights; of so few answers the estimate may be negative


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n", "1,x"], "--n 1,x: wanted an integer of 1 or more, got 'x'"),
        (["--n", "8", "--samples", "4"], "--samples must be at least the largest n, 8, got 4"),
        (["--policy", "none/at/all"], "none/at/all: no such file or folder"),
        (["--greedy"], "unrecognized arguments: --greedy"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(words, message, ppo_run, here, capsys):
    base = str(ppo_run.parent / "base")
    assert main(["best-of-n", base, "--prompts", "prompts.jsonl", "--reward", "rewards.py:length", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_unusable_models_and_rewards_are_refused_before_generation(ppo_run, here, capsys, monkeypatch):
    monkeypatch.setattr(TrainedPolicy, "generate", lambda *_: pytest.fail("drawn"))
    (here / "failing.py").write_text("def fail(responses): raise ValueError('no')\n")
    words = ["best-of-n", str(ppo_run.parent / "base"), "--prompts", "prompts.jsonl"]
    assert main([*words, "--reward", "failing.py:fail"]) == 2
    assert "ValueError: no" in capsys.readouterr().err
    assert main([*words, "--reward", "rewards.py:length", "--policy", str(ppo_run / "final/value_model")]) == 2
    assert "lm_head.weight" in capsys.readouterr().err


def test_one_prompt_has_no_interval(ppo_run, here, capsys):
    words = ["best-of-n", str(ppo_run.parent / "base"), "--prompts", "prompts.jsonl", "--reward", "rewards.py:length"]
    assert main([*words, "--n", "2", "--limit", "1", "--policy", str(ppo_run), "--max-new-tokens", "3"]) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row[3].strip() for row in rows] == ["-", "-"]
