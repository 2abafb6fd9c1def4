"""Real runs with every kind of source: a judge that goes away, and all of them on two ranks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from tests.e2e.processes import TINY, Started
from tests.e2e.test_evaluation import records

SHAPE = (
    "{model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2, "
    "num_key_value_heads: 2}"
)
FUNCTIONS = """
import os

def brevity(responses):
    return [-len(one) / 100 for one in responses]

def fragile(responses, situation):
    marker = os.path.join(os.path.dirname(__file__), f"calls-{os.environ.get('RANK', '0')}")
    with open(marker, "a") as file:
        file.write(".")
    if os.environ.get("RANK") == "1" and os.path.getsize(marker) == CALLS:
        raise LookupError("row 7 has gone")
    return [float(len(one)) for one in responses]
"""


class Judge(BaseHTTPRequestHandler):
    """Scores a response by its length, `left` times; then it is broken for good."""

    left = 0
    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).left -= 1
        if type(self).left < 0:
            self.send_error(500)
            return
        type(self).asked += body["exchanges"]
        answer = json.dumps({"scores": [len(one["response"]) / 10 for one in body["exchanges"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def judge(times: int) -> Iterator[tuple[str, type[Judge]]]:
    """A judge on a port of its own, which answers so many times."""
    kind = type("OneJudge", (Judge,), {"left": times, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/score", kind
    finally:
        server.shutdown()
        server.server_close()


def test_a_run_whose_judge_goes_away_is_saved_and_goes_on_bit_for_bit_at_another_address(tmp_path: Path) -> None:
    def words(url: str, name: str) -> list[str]:
        source = f"{{name: far, url: '{url}', retries: 1, normalise: running, clip: 2, weight: 0.5}}"
        return [*TINY, "checkpoint.every_steps=100", f"run.name={name}", f"reward=[{{name: rm}}, {source}]"]

    with judge(10**6) as (url, kind):
        whole = Started(tmp_path, *words(url, "whole"))
        assert whole.end(150) == 0, whole.text
        assert {tuple(one) for one in kind.asked} == {("messages", "response", "columns")}
        assert all("situation" in one["columns"] for one in kind.asked)  # of the demo's prompts
    # twice before models are loaded, twice before training (greedy and sampled), then once a step: the fourth fails
    with judge(7) as (url, _):
        cut = Started(tmp_path, *words(url, "cut"))
        assert cut.end(150) == 11, cut.text
        assert "stopped after step 3, checkpoint saved" in cut.text
        assert "Traceback" not in cut.text
    with judge(10**6) as (url, _):
        again = Started(tmp_path, *words(url, "cut"), "run.resume=true")
        assert again.end(150) == 0, again.text
    outputs = tmp_path / "outputs"
    for name in ("metrics.jsonl", "samples.jsonl", "rollouts.jsonl"):
        assert records(outputs / "cut", name) == records(outputs / "whole", name)
    for model in ("policy", "value_model"):
        weights = f"final/{model}/model.safetensors"
        assert (outputs / "cut" / weights).read_bytes() == (outputs / "whole" / weights).read_bytes()
    assert {"reward/far", "reward_part/far", "reward/rm"} <= records(outputs / "whole", "metrics.jsonl")[0].keys()


def write_encoder(folder: Path) -> None:
    """A small BERT of one label."""
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=2, num_labels=1, **shape)).save_pretrained(folder)


def test_two_ranks_ask_every_kind_of_source_and_one_that_fails_on_one_rank_ends_both(tmp_path: Path) -> None:
    """Asked about a row of each side, twice in the checks, twice before training, then once a step: the ninth fails."""
    (tmp_path / "mine.py").write_text(FUNCTIONS.replace("CALLS", "9"))
    write_encoder(tmp_path / "encoder")
    own = f"{{from_config: {SHAPE}, tokenizer: bytes, dtype: float32}}"
    sources = [
        "{name: rm}",
        "{name: short, function: 'mine.py:brevity', weight: 0.1}",
        "{name: fragile, function: 'mine.py:fragile', weight: 0.001}",
        f"{{name: own, model: {own}, whole_turn: true, batch_size: 3}}",
        "{name: encoder, model: {path: encoder, dtype: float32}, offload: true}",
    ]
    words = [
        *TINY,
        "check.num_prompts=2",
        "launch.num_gpus=2",
        f"reward=[{', '.join(sources)}]",
        "checkpoint.every_steps=100",
    ]
    run = Started(tmp_path, *words)
    assert run.end(200) == 11, run.text
    assert run.text.count("row 7 has gone") == 1, run.text
    assert "stopped after step 2, checkpoint saved" in run.text
    (tmp_path / "mine.py").write_text(FUNCTIONS.replace("CALLS", "-1"))
    again = Started(tmp_path, *words, "run.resume=true", "launch.num_gpus=1")
    assert again.end(200) == 0, again.text
    logged = records(tmp_path / "outputs/tiny", "metrics.jsonl")
    assert [one["step"] for one in logged] == list(range(1, 9))
    for one in logged:
        assert sum(one[f"reward_part/{name}"] for name in ("rm", "short", "fragile", "own", "encoder")) == (
            pytest.approx(one["score"], abs=1e-5)
        )
