import json

import pytest

from rlhf_cli.cli import main
from rlhf_cli.report.run_dir import PAIRS
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.use.score import fitted_scale
from tests.unit.rewards.services import Server, lengths
from tests.unit.use.test_trained_reward_model import load

LENGTH = """
import itertools
calls = itertools.count()
def length(responses): return [len(one) for one in responses]
def columns(responses, bonus): return [len(one) + extra for one, extra in zip(responses, bonus)]
def drifting(responses): return [next(calls) for _ in responses]
def nothing(responses): return [float("nan") for _ in responses]
def too_few(responses): return [1.0]
"""
# By length, 2 of these 4 pairs are right and one is a tie: (2 + 0.5) / 4.
PAIR_ROWS = [
    {"prompt": "a", "chosen": "long one", "rejected": "short", "kind": "x"},
    {"prompt": "b", "chosen": "x", "rejected": "longer", "kind": "x"},
    {"prompt": "c", "chosen": "same", "rejected": "size", "kind": "y"},
    {"prompt": "d", "chosen": "two words", "rejected": "one", "kind": "y"},
]


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with functions and rows, which the commands are run in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(LENGTH)
    write(tmp_path / "pairs.jsonl", PAIR_ROWS)
    return tmp_path


def test_pairs_by_a_function_with_figures_worked_out(here, capsys):
    """At a scale of ln(3) / 3 margins of 3, -5, 0 and 6 are probabilities of 3/4, 1/(1 + 3^(5/3)) =
    0.1381, 1/2, 9/10.

    Brier: (1/16 + 0.8619^2 + 1/4 + 1/100) / 4 = 0.2663. Confidences 0.75, 0.8619, 0.5, 0.9 stand in
    the bins from 0.75, 0.85, 0.5 and 0.9, with accuracies 1, 0, 1/2 and 1: ECE (0.25 + 0.8619 + 0 +
    0.1) / 4 = 0.3030.
    """
    words = ["score", "--function", "rewards.py:length", "--file", "pairs.jsonl", "--category-column", "kind"]
    assert main([*words, "--scale", str(1.0986122886681098 / 3), "--out", "out.jsonl"]) == 0
    out = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in out.splitlines() if "│" in line}
    assert rows["accuracy"] == "62.5%"
    assert rows['baseline: "the longer answer wins"'] == "62.5%"
    assert rows["mean of score(chosen) - score(rejected)"] == "1.000"
    assert rows["calibration error (ECE), at 0.366 log odds a point"] == "0.303"
    assert rows["Brier score"] == "0.266"
    assert rows["accuracy, x (2)"] == "50.0%"
    assert rows["accuracy, y (2)"] == "75.0%"
    records = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert [(one["score_chosen"], one["score_rejected"]) for one in records] == [(8, 5), (1, 6), (4, 4), (9, 3)]
    assert records[0]["chosen"] == "long one"
    assert "4 pairs: out.jsonl" in out


def test_a_reward_model_reads_what_it_was_trained_to_read(rm_run, here):
    assert main(["score", str(rm_run), "--file", "pairs.jsonl", "--out", "out.jsonl"]) == 0
    scorer = load(rm_run)
    records = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    for record, row in zip(records, PAIR_ROWS, strict=True):
        messages = [{"role": "user", "content": row["prompt"]}]
        expected = scorer.score([Exchange(messages, row["chosen"]), Exchange(messages, row["rejected"])])
        assert [record["score_chosen"], record["score_rejected"]] == pytest.approx(expected, abs=1e-5)


def test_single_responses_with_their_columns(here, capsys):
    write(
        here / "rows.jsonl",
        [{"prompt": "a", "response": "four", "bonus": 10}, {"prompt": "b", "response": "", "bonus": 1}],
    )
    assert main(["score", "rewards.py:columns", "--file", "rows.jsonl", "--out", "out.jsonl"]) == 0
    records = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert records == [
        {"prompt": "a", "response": "four", "bonus": 10, "score": 14.0},
        {"prompt": "b", "response": "", "bonus": 1, "score": 1.0},
    ]
    out = capsys.readouterr().out
    assert "7.500" in out  # the mean
    assert "1.000, 14.000" in out
    write(here / "rows.jsonl", [{"prompt": "a", "text": "four"}])
    assert main(["score", "rewards.py:length", "--file", "rows.jsonl", "--response-column", "text"]) == 0
    assert "4.000" in capsys.readouterr().out


def test_columns_with_the_name_of_an_output_field_are_kept(here):
    write(here / "rows.jsonl", [{"prompt": "a", "response": "x", "other": "four", "score": 7}])
    words = ["--file", "rows.jsonl", "--response-column", "other", "--out", "out.jsonl"]
    assert main(["score", "rewards.py:length", *words]) == 0
    assert json.loads((here / "out.jsonl").read_text()) == {
        "prompt": "a",
        "response": "four",
        "score": 4.0,
        "row_response": "x",
        "row_score": 7,
    }


def test_columns_of_pairs_reach_functions_and_are_written(here):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    write(here / "rows.jsonl", [{"prompt": chat, "chosen": "four", "rejected": "x", "bonus": 10, "weight": 3, "id": 7}])
    assert main(["score", "rewards.py:columns", "--file", "rows.jsonl", "--out", "out.jsonl"]) == 0
    assert json.loads((here / "out.jsonl").read_text()) == {
        "prompt": chat,
        "chosen": "four",
        "rejected": "x",
        "score_chosen": 14.0,
        "score_rejected": 11.0,
        "log_odds": 3.0,
        "weight": 1.0,
        "category": None,
        "bonus": 10,
        "row_weight": 3,
        "id": 7,
    }


@pytest.mark.parametrize(
    "words", [["--ranking-column", "ranking"], ["--chosen-column", "better", "--rejected-column", "worse"]]
)
def test_rows_with_a_response_are_pairs_when_asked_for(words, here, capsys):
    row = {"prompt": "a", "response": "r", "ranking": ["22", "1"], "better": "22", "worse": "1"}
    write(here / "rows.jsonl", [row])
    assert main(["score", "rewards.py:length", "--file", "rows.jsonl", *words]) == 0
    assert "rewards.py:length: 1 pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "3"], "--scale is for pairs, but each row of rows.jsonl has one response; leave it out"),
        (["--category-column", "kind"], "--category-column is for pairs"),
        (["--response-column", "response", "--chosen-column", "x"], "--chosen-column is for pairs"),
    ],
)
def test_options_for_pairs_are_refused_on_single_responses(words, message, here, capsys):
    write(here / "rows.jsonl", [{"prompt": "a", "response": "r"}])
    assert main(["score", "rewards.py:length", "--file", "rows.jsonl", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_bad_row_of_single_responses_is_named(here, capsys):
    write(here / "rows.jsonl", [{"prompt": "a", "response": "r"}, {"prompt": "", "response": "r"}])
    assert main(["score", "rewards.py:length", "--file", "rows.jsonl"]) == 2
    assert "rows.jsonl:2: prompt: empty" in capsys.readouterr().err


@pytest.mark.parametrize("good", [{"response": "four"}, {"chosen": "four", "rejected": "x"}])
def test_rows_beyond_the_limit_are_not_checked(good, here, capsys):
    write(here / "rows.jsonl", [{"prompt": "a", **good}, {"prompt": 5, **good}])
    assert main(["score", "rewards.py:length", "--file", "rows.jsonl", "--limit", "1"]) == 0
    assert f"rewards.py:length: 1 {'responses' if 'response' in good else 'pairs'}" in capsys.readouterr().out
    assert main(["score", "rewards.py:length", "--file", "rows.jsonl", "--limit", "2"]) == 2
    assert "rows.jsonl:2: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"score_chosen": 1}\n', "[1, 2]\n", "no JSON\n"])
def test_damaged_pairs_of_a_run_are_named(text, rm_run, here, capsys):
    (rm_run / PAIRS).write_text(text)
    try:
        assert main(["score", str(rm_run), "--file", "pairs.jsonl"]) == 2
    finally:
        (rm_run / PAIRS).unlink()
    err = capsys.readouterr().err
    assert f"{rm_run / PAIRS}: damaged (" in err
    assert "give --scale" in err
    assert err.count("\n") == 1


def test_a_ranking_counts_as_one_row(here, capsys):
    """By length the pairs of the first row are right, wrong, wrong and weigh 1/3: (1/3 + 1) / 2
    = 66.7 %.
    """
    write(here / "rows.jsonl", [{"prompt": "a", "best": ["22", "1", "333"]}, {"prompt": "b", "best": ["22", "1"]}])
    assert main(["score", "rewards.py:length", "--file", "rows.jsonl", "--ranking-column", "best"]) == 0
    assert "66.7%" in capsys.readouterr().out


def test_rated_rows_are_ranked_by_their_scores(here, capsys):
    """By length "22" beats "1", which has the better score, and "333" both others: right in 1 of
    3 pairs.
    """
    rows = [{"prompt": "a", "text": text, "score": score} for text, score in [("1", 5), ("22", 4), ("333", 4.5)]]
    write(here / "rows.jsonl", rows)
    words = ["--file", "rows.jsonl", "--format", "rated_rows", "--response-column", "text", "--out", "out.jsonl"]
    assert main(["score", "rewards.py:length", *words]) == 0
    assert "33.3%" in capsys.readouterr().out
    records = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert [(one["chosen"], one["rejected"]) for one in records] == [("1", "333"), ("1", "22"), ("333", "22")]


def test_a_service_is_called_at_its_score_path(here, capsys):
    server = Server([lengths])
    try:
        assert main(["score", "--http", server.url, "--file", "pairs.jsonl"]) == 0
    finally:
        server.stop()
    assert "62.5%" in capsys.readouterr().out
    assert {path for path, _, _ in server.requests} == {"/score"}


def test_the_scale_of_a_run_is_fitted_to_its_own_pairs(rm_run, here, capsys):
    """Slope through the origin of (2, 1) and (-1, -0.5) is 0.5."""
    assert fitted_scale(rm_run) is None
    pairs = [
        {"score_chosen": 2.0, "score_rejected": 0.0, "log_odds": 1.0},
        {"score_chosen": 0.0, "score_rejected": 1.0, "log_odds": -0.5},
    ]
    try:
        write(rm_run / PAIRS, pairs)
        assert fitted_scale(rm_run) == pytest.approx(0.5)
        for path in (rm_run, rm_run / "final"):
            assert main(["score", str(path), "--file", "pairs.jsonl"]) == 0
            assert "at 0.5 log odds a point" in capsys.readouterr().out
    finally:
        (rm_run / PAIRS).unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "wanted one of REWARD, --http and --function, got 0"),
        (["rewards.py:length", "--http", "http://127.0.0.1:1"], "got 2"),
        (["--http", "127.0.0.1:1"], "--http must be http://... or https://..., got 127.0.0.1:1"),
        (["--function", "rewards.py"], "--function must be module:name"),
        (["none/at/all"], "reward=none/at/all: no such file or folder"),
        (["rewards.py:width"], "has no 'width'; its functions are: length, columns, drifting, nothing, too_few"),
        (["rewards.py:drifting"], "wanted the same score twice; set --random"),
        (["--http", "http://127.0.0.1:1"], "reward service (http://127.0.0.1:1/score): ConnectError"),
        (["rewards.py:nothing"], "wanted a finite number, got nan"),
        (["rewards.py:too_few"], "wanted 8 numbers, one per response, got 1"),
        (["rewards.py:length", "--chosen-column", "better"], "no column 'better'"),
        (["rewards.py:length", "--response-column", "answer"], "row 1: answer: wanted a string, got no such column"),
        (
            ["rewards.py:length", "--whole-turn"],
            "whole_turn must be unset: it has no effect on a source without its own model",
        ),
        (["rewards.py:length", "--scale", "-1"], "--scale: wanted a number in (0, 1e+06], got '-1'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(words, message, here, capsys, monkeypatch):
    monkeypatch.setattr("rlhf_cli.rewards.http_source.FIRST_PAUSE_S", 0.01)
    assert main(["score", *words, "--file", "pairs.jsonl"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_random_function_may_change_its_scores(here):
    assert main(["score", "rewards.py:drifting", "--random", "--file", "pairs.jsonl"]) == 0
