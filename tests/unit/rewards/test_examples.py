"""The functions of examples/rewards.py, called as in a run."""

import math
import re
import subprocess
import sys
import time

import httpx
import pytest

from rlhf_cli.config.errors import RewardError
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.rewards.function_source import FunctionSource
from rlhf_cli.rewards.http_source import HttpSource
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.system.processes import free_port
from tests.conftest import REPOSITORY, child_environment


@pytest.fixture
def ask(monkeypatch):
    """Score (prompt, response, columns) by a function of the examples, from the repository's
    folder.
    """
    monkeypatch.chdir(REPOSITORY)
    made = []

    def score(name, *rows):
        made.append(FunctionSource(RewardSourceConfig(name=name, function=f"examples/rewards.py:{name}"), "reward[0]"))
        return made[-1].score(
            [Exchange([{"role": "user", "content": prompt}], response, columns) for prompt, response, columns in rows]
        )

    yield score
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("2 + 2 = 4", 4, 1.0),
        ("It is 4.", "4", 1.0),
        ("It is 4.0", 4, 1.0),
        ("It is 5, not 4? No: 5", 4, 0.0),
        ("1,234,567 in all", "1234567", 1.0),
        ("1234568", 1234567, 0.0),
        ("-3 degrees", -3, 1.0),
        ("3 degrees", -3, 0.0),
        ("I do not know", 4, 0.0),
        ("", 4, 0.0),
        ("Let me think.\nParis.\n", "paris", 1.0),
        ("Paris? No, London", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("none", None, 0.0),
    ],
)
def test_exact(ask, response, answer, score):
    assert ask("exact", ("?", response, {"answer": answer})) == [score]


def test_exact_wants_a_column_of_answers(ask):
    with pytest.raises(RewardError, match="it takes 'answer', a column that no prompt has; columns: right"):
        ask("exact", ("?", "4", {"right": 4}))


def test_matches(ask):
    assert ask("matches", ("?", "Thank you!", {}), ("?", "No.", {}), ("?", "pleased", {})) == [1.0, 0.0, 0.0]
    rows = [("?", "order 12-34", {"pattern": r"\d\d-\d\d"}), ("?", "order 1", {"pattern": r"\d\d"}), ("?", "sorry", {})]
    assert ask("matches", *rows) == [1.0, 0.0, 1.0]


def test_brevity(ask):
    scores = ask("brevity", ("?", "", {}), ("?", "word " * 60, {}), ("?", "word " * 120, {}))
    assert scores == pytest.approx([0.0, 0.0, -math.log(2)], abs=1e-12)


def test_sentiment(ask):
    assert ask(
        "sentiment",
        ("?", "Thank you, that is wonderful!", {}),
        ("?", "This is horrible, go away.", {}),
        ("?", "", {}),
    ) == [0.7574, -0.5423, 0.0]  # of vaderSentiment 3.3.2


def test_asked(ask):
    assert ask("asked", ("my two words", "TWO", {}), ("a b", "b a", {}), ("", "x", {})) == [
        pytest.approx(1 / 3),
        1.0,
        0.0,
    ]


def block(name):
    """A block of docs/rewards.md, by the file name in its first line."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/rewards.md").read_text("utf-8"), flags=re.DOTALL)
    return next(text for text in blocks if text.startswith(f"# {name}"))


SUM = Exchange([{"role": "user", "content": "What is 2 + 2?"}], "It is 4.", {"answer": 4})


def test_the_function_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rewards.py").write_text(block("my_rewards.py"))
    config = RewardSourceConfig(name="task", function="my_rewards.py:right_and_short")
    source = FunctionSource(config, "reward[0]")
    assert source.score([SUM, Exchange(SUM.messages, "No.", {"answer": 4})]) == pytest.approx([0.97, -0.01])
    source.close()


def test_the_service_of_the_page(tmp_path):
    (tmp_path / "my_service.py").write_text(block("my_service.py"))
    port = free_port()
    words = [sys.executable, "-m", "uvicorn", "my_service:app", "--port", str(port)]
    process = subprocess.Popen(words, cwd=tmp_path, env=child_environment(), stderr=subprocess.DEVNULL)
    source = HttpSource(RewardSourceConfig(name="far", url=f"http://127.0.0.1:{port}", retries=0), "reward[0]")
    try:
        deadline = time.monotonic() + 60
        while not listens(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert source.score([SUM, SUM]) == [-0.08, -0.08]
    finally:
        source.close()
        process.terminate()
        process.wait(20)


def listens(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 404
    except httpx.TransportError:
        return False
