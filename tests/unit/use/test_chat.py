import io
import sys

import pytest

from rlhf_cli.cli import main
from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.config.sections import PromptDataConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.use import chat as chat_command
from rlhf_cli.use.cli_options import Sampling

SAMPLING = Sampling(None, None, None, None, seed=7, greedy=False)


class Parrot:
    """Answers with the last message, token by token, in upper case; `stop_at`: Ctrl-C comes
    after so many tokens.
    """

    def __init__(self, stop_at=None):
        self.renderer = Renderer(byte_tokenizer(), PromptDataConfig(system_prompt="S"))
        self.stop_at = stop_at
        self.keys = []

    def prompt_ids(self, messages):
        if len(messages) > 5:
            raise InputError("no room")
        self.asked = messages
        return self.renderer.prompt_ids(messages)

    def stream(self, prompt, key, greedy=False):
        self.keys.append(key)
        for place, token in enumerate(self.renderer.response_ids(self.asked[-1]["content"].upper())):
            if place == self.stop_at:
                raise KeyboardInterrupt
            yield token


class Length:
    """Scores by length, and keeps what it was asked."""

    def score(self, exchanges):
        self.asked = exchanges[0]
        if exchanges[0].response == "FAIL":
            raise RewardError("the service\x1b is gone")
        if exchanges[0].response == "SLOW":
            raise KeyboardInterrupt
        return [float(len(one.response)) for one in exchanges]


def chat(*lines, policy=None, judge=None):
    """What a chat shows; lines: what is typed, or the exception that typing raises."""
    shown = []
    policy = policy or Parrot()
    conversation = chat_command.Conversation(policy, judge, SAMPLING, shown.append)
    typed = iter([*lines, EOFError()])

    def read():
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    chat_command.chat(conversation, read, shown.append)
    return conversation, "".join(shown)


def test_responses_are_streamed_and_the_conversation_grows():
    policy = Parrot()
    conversation, shown = chat("hé", "", "you", policy=policy)
    assert shown == "HÉ\n[4 tokens]\nYOU\n[4 tokens]\n"  # É is two tokens, and there is EOS
    assert [one["content"] for one in conversation.messages] == ["hé", "HÉ", "you", "YOU"]
    assert [one["role"] for one in conversation.messages] == ["user", "assistant"] * 2
    assert policy.keys == ["7/chat/1/0", "7/chat/3/0"]


def test_each_response_is_scored_as_in_training():
    judge = Length()
    _, shown = chat("hello", "fail", judge=judge)
    assert "[6 tokens, score +5.000]" in shown
    assert "[5 tokens, no score: the service\ufffd is gone]" in shown
    assert [one["content"] for one in judge.asked.messages] == ["S", "hello", "HELLO", "fail"]


def test_ctrl_c_stops_a_response_and_keeps_its_text():
    conversation, shown = chat("hello", policy=Parrot(stop_at=2))
    assert shown == "HE\n[2 tokens, stopped]\n"
    assert conversation.messages[-1] == {"role": "assistant", "content": "HE"}


def test_ctrl_c_stops_the_scoring_of_a_response():
    conversation, shown = chat("slow", "hello", judge=Length())
    assert "[5 tokens, no score: stopped]\n" in shown
    assert "[6 tokens, score +5.000]" in shown
    assert [one["content"] for one in conversation.messages] == ["slow", "SLOW", "hello", "HELLO"]


def test_reset_and_retry():
    policy = Parrot()
    conversation, shown = chat("/retry", "one", "/retry", "/retry", "/reset", "two", policy=policy)
    assert shown.startswith("there is no message yet")
    assert policy.keys == ["7/chat/1/0", "7/chat/1/1", "7/chat/1/2", "7/chat/1/0"]
    assert [one["content"] for one in conversation.messages] == ["two", "TWO"]
    assert "(new conversation)" in shown


def test_a_conversation_that_is_too_long_stays_unchanged():
    conversation, shown = chat("1", "2", "3", "4")
    assert shown.endswith("no room; /reset starts a new conversation\n")
    assert len(conversation.messages) == 6


def test_a_line_that_is_not_utf_8_is_refused_and_the_chat_continues(ppo_run, monkeypatch, capsys):
    typed = io.TextIOWrapper(io.BytesIO(b"a\xffb\nnext\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    assert main(["chat", str(ppo_run), "--max-new-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert "message must be UTF-8, got another byte at character 2; check the encoding of the terminal" in out
    assert out.count(" tokens") == 1


def test_a_closed_input_is_the_end_of_the_chat(ppo_run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat", str(ppo_run)]) == 0
    sys.stdin.close()


def test_commands_ctrl_c_and_quit():
    _, shown = chat("/help", "/ques\x1btion now", KeyboardInterrupt(), "/quit", "never")
    assert "Ctrl-C  stop a response" in shown
    assert "unknown command /ques\ufffdtion; the commands are:" in shown
    assert "(/quit or Ctrl-D leaves)" in shown
    assert "NEVER" not in shown


def test_without_a_terminal_lines_are_read(ppo_run, rm_run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello?\n/retry\n"))
    assert main(["chat", str(ppo_run), "--reward", str(rm_run), "--max-new-tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{ppo_run}: /help lists the commands\n")
    assert out.count("tokens, score ") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none/at/all"], "no such file or folder"),
        (["{run}", "--reward", "none/at/all"], "--reward=none/at/all: no such file or folder"),
        (["{run}", "--batch-size", "3"], "unrecognized arguments: --batch-size 3"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(words, message, ppo_run, capsys):
    assert main(["chat", *(word.format(run=ppo_run) for word in words)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
