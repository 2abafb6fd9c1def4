"""`rlhf serve-reward` as a process: scores over HTTP, ports, tokens, signals."""

import asyncio
import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import torch

from rlhf_cli.cli import main
from rlhf_cli.config.errors import RewardError
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.rewards.http_source import HttpSource
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.use import commands
from rlhf_cli.use.serve_reward import refuse_out_of_memory
from tests.conftest import child_environment
from tests.unit.use.conftest import SYSTEM
from tests.unit.use.test_trained_reward_model import load

EXCHANGES = [
    Exchange([{"role": "user", "content": "Where is it?"}], "On its way."),
    Exchange([{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes?"}], "What a day! " * 5),
    Exchange([{"role": "user", "content": "é\u4e2d"}], ""),
    Exchange([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "?"}], "No."),
    Exchange([{"role": "user", "content": "Where is it?"}], "Nowhere."),
]


@contextlib.contextmanager
def served(words, **environment):
    """Start a command that prints its URL; yield the process and the URL."""
    process = subprocess.Popen(
        words, env=child_environment(**environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, line + process.stderr.read()
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def source():
    made = []

    def make(url, **options):
        made.append(HttpSource(RewardSourceConfig(name="far", url=url, **options), "reward[0]"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_scores_over_http_are_those_of_the_model(rm_run, source, monkeypatch):
    monkeypatch.setenv("TEST_TOKEN", "Bearer right")
    expected = load(rm_run).score(EXCHANGES)
    assert len(set(expected)) == 5
    words = [sys.executable, "-m", "rlhf_cli", "serve-reward", str(rm_run), "--port", "0", "--token-env", "TEST_TOKEN"]
    with served([*words, "--device", "cpu", "--batch-size", "2", "--max-mib", "1"]) as (process, url):
        authorized = {"auth_env": "TEST_TOKEN", "retries": 0}
        assert source(url, **authorized).score(EXCHANGES) == pytest.approx(expected, abs=1e-6)
        assert source(url, batch_size=1, **authorized).score(EXCHANGES) == pytest.approx(expected, abs=1e-6)
        with pytest.raises(RewardError, match=r"401 Unauthorized: .*send the header `Authorization: Bearer TOKEN`"):
            source(url, retries=0).score(EXCHANGES)
        with pytest.raises(RewardError, match=r"413 .*a request may have 1048576 bytes"):
            source(url, **authorized).score([Exchange(EXCHANGES[0].messages, "x" * 2**20)])
        with pytest.raises(RewardError, match=r"422 .*has 512 positions, got more tokens"):
            source(url, **authorized).score([Exchange(EXCHANGES[0].messages, "long " * 2000)])
        headers = {"Authorization": "Bearer right"}
        info = httpx.get(f"{url}/info", headers=headers, trust_env=False).json()
        assert info["system_prompt"] == SYSTEM
        assert (info["dtype"], info["device"], info["model"]) == ("float32", "cpu", str(rm_run / "final"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
        assert "right" not in process.stdout.read()


SLOW = """
import time
from rlhf_cli.use.serve_reward import _listen, serve
from rlhf_cli.use.score_service import Info, make_app
def score(exchanges):
    print("scoring", flush=True)
    time.sleep(SECONDS)
    return [1.0] * len(exchanges)
with _listen("127.0.0.1", 0) as listener:
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    serve(make_app(score, Info(model="", template="", system_prompt=None, dtype="", device="")), listener)
print("ended")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_open_requests(source, number):
    with served([sys.executable, "-c", SLOW.replace("SECONDS", "0.5")]) as (process, url):
        found = []
        thread = threading.Thread(target=lambda: found.append(source(url, retries=0).score(EXCHANGES)))
        thread.start()
        assert process.stdout.readline() == "scoring\n"
        process.send_signal(number)
        thread.join(20)
        assert found == [[1.0] * 5]
        assert process.wait(20) == 0
        assert process.stdout.read() == "ended\n"
        assert process.stderr.read() == ""
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health", trust_env=False)


def test_a_second_ctrl_c_cancels_requests_without_a_traceback():
    with served([sys.executable, "-c", SLOW.replace("SECONDS", "4")]) as (process, url):
        outcomes = []
        content = {"exchanges": [{"messages": [{"role": "user", "content": "a"}], "response": "b"}]}

        def ask():
            try:
                with httpx.Client(trust_env=False, timeout=20) as client:
                    outcomes.append(client.post(f"{url}/score", json=content).status_code)
            except httpx.TransportError:
                outcomes.append(500)  # both are tried again by a run

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert process.stdout.readline() == "scoring\n"
        time.sleep(0.3)
        started = time.monotonic()
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        for thread in threads:
            thread.join(20)
        assert outcomes == [500] * 3
        assert time.monotonic() - started < 3  # before the model has answered
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def failure(capsys, *words):
    """Return the error of `rlhf serve-reward`, which ends soon with exit code 2."""
    started = time.monotonic()
    assert main(["serve-reward", *words]) == 2
    assert time.monotonic() - started < 20
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    return said.err


def test_a_port_that_is_taken(rm_run, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = failure(capsys, str(rm_run), "--port", str(port))
    assert said == (
        f"rlhf: error: cannot listen on --host 127.0.0.1 --port {port}: Address already in use; "
        "choose another address or port\n"
    )


def test_an_unknown_host(rm_run, capsys):
    assert "--host no.such.invalid --port 0: " in failure(
        capsys, str(rm_run), "--host", "no.such.invalid", "--port", "0"
    )


def test_a_model_that_is_not_a_reward_model(ppo_run, tmp_path, capsys):
    assert "wanted a reward model" in failure(capsys, str(ppo_run), "--port", "0")
    assert str(tmp_path / "missing") in failure(capsys, str(tmp_path / "missing"), "--port", "0")


def test_a_reward_model_that_is_damaged(rm_run, tmp_path, capsys):
    shutil.copytree(rm_run, tmp_path / "run")
    weights = tmp_path / "run/final/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert str(tmp_path / "run") in failure(capsys, str(tmp_path / "run"), "--port", "0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "rlhf serve-reward: the following arguments are required: RUN_DIR; see rlhf serve-reward --help"),
        (["a", "b"], "unrecognized arguments: b"),
        (["a", "--prot", "1"], "unrecognized arguments: --prot"),
        (["a", "--port", "x"], "argument --port: wanted an integer between 0 and 65535, got 'x'"),
        (["a", "--port", "65536"], "between 0 and 65535, got '65536'"),
        (["a", "--batch-size", "0"], "argument --batch-size: wanted an integer of 1 or more, got '0'"),
        (["a", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (
            ["a", "--token-env", "TEST_TOKEN"],
            "--token-env: set the environment variable TEST_TOKEN to a token of printable ASCII",
        ),
    ],
)
def test_wrong_arguments(words, message, capsys, monkeypatch):
    monkeypatch.setenv("TEST_TOKEN", "Bearer  ")
    assert message in failure(capsys, *words)


def test_a_client_is_told_that_memory_is_too_small():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")
    refusal = asyncio.run(refuse_out_of_memory(None, error))
    assert refusal.status_code == 500
    assert re.search(rb"out of GPU memory .*2\.00 GiB.*lower --batch-size", refusal.body)


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_a_package_that_is_not_installed(package, capsys, monkeypatch):
    monkeypatch.setattr(commands, "find_spec", lambda name: None if name == package else object())
    assert f"needs the package {package}; install it: pip install 'rlhf[serve]'" in failure(capsys, "a")


def test_help(capsys):
    assert main(["serve-reward", "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: rlhf serve-reward ")
    assert "RUN_DIR" in shown
