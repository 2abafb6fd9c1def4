"""One signal asks for an end between two steps; a second, later, is obeyed at once. And how a process leaves."""

import signal
import subprocess
import sys
import time

import pytest

from rlhf_cli.system.signals import REPEAT_S, STOPPING, StopSignals
from tests.conftest import REPOSITORY, child_environment

CHILD = """
import os, signal, sys, threading, time, logging
from rlhf_cli.system import signals
from rlhf_cli.system.signals import StopSignals, exit_now
{body}
"""


def child(body):
    words = [sys.executable, "-c", CHILD.format(body=body)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = child_environment()
    environment.pop("PYTHONUNBUFFERED", None)  # with it there would be nothing to flush
    return subprocess.Popen(words, cwd=REPOSITORY, env=environment, text=True, **pipes)


def ended(body):
    process = child(body)
    try:
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, out, err


LISTENING = """
stop = StopSignals()
stop.install()
print("ready", flush=True)
for _ in range(400):
    time.sleep(0.05)
    if stop.received is not None:
        print(stop.received.name, flush=True)
        break
for line in sys.stdin:
    print("alive", flush=True)
"""


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_is_remembered(number):
    process = child(LISTENING)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"{signal.Signals(number).name}\n"
        process.send_signal(number)  # delivered twice, by a scheduler and by a supervisor
        process.stdin.write("are you there?\n")
        process.stdin.flush()
        assert process.stdout.readline() == "alive\n"
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize("second", STOPPING)
def test_a_later_signal_ends_the_process_at_once(second):
    """Of whichever kind; what counts is the time since the first: the ones between do not put it off."""
    body = f"""
signals.REPEAT_S = 0.4
stop = StopSignals()
stop.install()
for wait in (0.0, 0.15, 0.15, 0.15):
    time.sleep(wait)
    os.kill(os.getpid(), signal.SIGTERM if not wait else {int(second)})
    print("still", stop.received.name, flush=True)
"""
    assert ended(body) == (128 + second, "still SIGTERM\n" * 3, "")


def test_the_time_between_is_two_seconds(monkeypatch):
    """At 2 s the second is ignored, right after it is not."""
    now, codes = 50.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr("os._exit", codes.append)
    stop = StopSignals()
    stop._receive(signal.SIGTERM, None)
    now = 50.0 + REPEAT_S
    stop._receive(signal.SIGINT, None)
    assert (stop.received, codes) == (signal.SIGTERM, [])
    now = 52.001
    stop._receive(signal.SIGINT, None)
    assert (stop.received, codes) == (signal.SIGTERM, [130])


def test_before_they_are_installed_signals_do_what_they_did():
    stop = StopSignals()
    assert stop.received is None
    assert ended("stop = StopSignals()\nos.kill(os.getpid(), signal.SIGTERM)\n")[0] == -signal.SIGTERM


def test_who_leaves_waits_for_nobody_and_loses_no_word():
    """A thread that would keep the interpreter, an exit handler that would abort, words in buffers and handlers."""
    body = """
import atexit
from logging.handlers import MemoryHandler
atexit.register(os.abort)
threading.Thread(target=time.sleep, args=(60,)).start()
logging.getLogger().addHandler(MemoryHandler(100, target=logging.StreamHandler(sys.stderr)))
logging.warning("a last line of the log")
print("a last line, not yet written", end="")
sys.stderr.write("and an error")
exit_now(9)
"""
    start = time.monotonic()
    code, out, err = ended(body)
    assert (code, out) == (9, "a last line, not yet written")
    assert err == "and an errora last line of the log\n"
    assert time.monotonic() - start < 15


def test_who_leaves_with_a_closed_pipe_keeps_its_code():
    """`rlhf list | head -1`"""
    body = """
sys.stdin.readline()
print("nobody reads this")
exit_now(3)
"""
    process = child(body)
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.flush()
    try:
        assert process.wait(timeout=20) == 3
    finally:
        process.kill()
        process.stdin.close()
        process.stderr.close()


@pytest.mark.parametrize("code", [0, 1, 75, 143])
def test_the_code_is_the_one_given(code):
    assert ended(f"exit_now({code})") == (code, "", "")
