"""A chat on a pseudoterminal: typed, stopped, left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_cli.config.sections import DType, ModelConfig
from rlhf_cli.models.load_models import load_causal_lm
from rlhf_cli.models.load_tokenizer import load_tokenizer
from tests.conftest import child_environment

pyte = pytest.importorskip("pyte")
COLUMNS, LINES = 100, 40
NUM_TOKENS = 3000  # of an answer that nobody stops: most of a minute


class Terminal(pyte.HistoryScreen):  # type: ignore[misc]
    """A terminal of its own with a command on it; it answers when asked where the cursor is, as terminals do."""

    def __init__(self, folder: Path, *args: str) -> None:
        super().__init__(COLUMNS, LINES, history=2000, ratio=0.5)
        self.stream = pyte.ByteStream(self)
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.child = subprocess.Popen(
            [sys.executable, "-m", "rlhf_cli", *args],
            cwd=folder,
            env=child_environment(TERM="xterm-256color"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C is a signal to who owns the terminal
        )
        os.close(theirs)

    def write_process_input(self, data: str) -> None:
        os.write(self.ours, data.encode())

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    @property
    def text(self) -> str:
        above = ["".join(row[column].data for column in range(COLUMNS)) for row in self.history.top]
        return "\n".join(row.rstrip() for row in (*above, *self.display))

    def wait_for(self, text: str) -> None:
        self._read_until(lambda: text in self.text)

    def _read_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not done():
            assert time.monotonic() < deadline, self.text
            if select.select([self.ours], [], [], 0.1)[0]:
                self.stream.feed(os.read(self.ours, 65536))

    def wait_for_prompt(self) -> None:
        """Wait for an empty prompt as the last line; what is typed before is read as a line without keys: no Ctrl-D."""
        self._read_until(lambda: self.text.rstrip().endswith("\n>"))

    def end(self) -> int:
        with contextlib.suppress(OSError):  # the other side is closed
            self._read_until(lambda: False)
        os.close(self.ours)
        return self.child.wait(30)


@pytest.fixture
def talkative(tmp_path: Path) -> Path:
    """A model that never ends an answer: its EOS always has the logit 0, which the likeliest token exceeds."""
    shape: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
    }
    config = ModelConfig(from_config=shape, tokenizer="bytes", dtype=DType.float32)
    tokenizer = load_tokenizer(config, "model")
    model: Any = load_causal_lm(config, "model", tokenizer, 0)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] = 0
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rewards.py").write_text("def length(responses): return [len(one) for one in responses]\n")
    return tmp_path


def test_ctrl_c_stops_a_response_and_the_chat_continues(talkative: Path) -> None:
    words = ["model", "--greedy", "--max-new-tokens", str(NUM_TOKENS), "--reward", "rewards.py:length"]
    screen = Terminal(talkative, "chat", *words)
    screen.wait_for_prompt()
    screen.type("Hello\r")
    screen.wait_for("> Hello\n")
    time.sleep(1.0)  # in the middle of the answer
    screen.type("\x03")
    screen.wait_for("tokens, stopped, score +")
    screen.wait_for_prompt()
    screen.type("\x03")
    screen.wait_for("(/quit or Ctrl-D leaves)")
    screen.wait_for_prompt()
    screen.type("/reset\r")
    screen.wait_for("(new conversation)")
    screen.wait_for_prompt()
    screen.type("\x04")
    assert screen.end() == 0
    assert "Traceback" not in screen.text


def test_quit_leaves(talkative: Path) -> None:
    screen = Terminal(talkative, "chat", "model", "--max-new-tokens", "5")
    screen.wait_for("model: /help lists the commands")
    screen.wait_for_prompt()
    screen.type("Hello\r")
    screen.wait_for("[5 tokens]")
    screen.wait_for_prompt()
    screen.type("/quit\r")
    assert screen.end() == 0
