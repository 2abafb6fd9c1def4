"""HTTP services as sources, against real servers on loopback that delay, fail, lie, hang up and
restart.
"""

import datetime
import email.utils
import logging
import random
import threading
import time

import pytest

from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.config.reward_options import RewardSourceConfig
from rlhf_cli.rewards import http_source as http
from rlhf_cli.rewards.http_source import HttpSource
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.system.watchdog import PROGRESS
from tests.unit.rewards.services import Handler, Server, answer, lengths


def exchange(response, **columns):
    return Exchange([{"role": "user", "content": "Hello?"}], response, columns)


FIVE = [exchange("x" * size) for size in (3, 1, 4, 1, 5)]


@pytest.fixture
def serve():
    servers = []

    def start(*script, port=0):
        servers.append(Server(list(script), port))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def source(monkeypatch):
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.01)
    made = []

    def make(url, **options):
        config = RewardSourceConfig(name="far", url=url, **options)
        config.check("reward[0]")
        made.append(HttpSource(config, "reward[0]"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_scores_are_in_order_whichever_request_ends_first(serve, source):
    def slower_for_the_first(handler):
        time.sleep(0.1 if handler.asked["exchanges"][0]["response"] == "xxx" else 0)
        lengths(handler)

    server = serve(slower_for_the_first)
    assert source(server.url, batch_size=2).score(FIVE) == [3.0, 1.0, 4.0, 1.0, 5.0]
    sizes = sorted(len(asked["exchanges"]) for _, _, asked in server.requests)
    assert sizes == [1, 2, 2]


def test_what_is_sent(serve, source):
    server = serve(lengths)
    rows = {"n": 3, "day": datetime.date(2026, 1, 2), "nan": float("nan"), "deep": {"a": (1, None)}, "raw": b"x"}
    assert source(server.url).score([exchange("é\ud800", **rows)]) == [2.0]
    ((path, headers, asked),) = server.requests
    assert path == "/score"
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    columns = {"n": 3, "day": "2026-01-02", "nan": None, "deep": {"a": [1, None]}, "raw": None}
    messages = [{"role": "user", "content": "Hello?"}]
    assert asked == {"exchanges": [{"messages": messages, "response": "é\ud800", "columns": columns}]}


@pytest.mark.parametrize(("given", "path"), [("", "/score"), ("/", "/score"), ("/my/way?x=1", "/my/way?x=1")])
def test_an_address_without_a_path_gets_one(serve, source, given, path):
    server = serve(lengths)
    source(server.url + given).score(FIVE[:1])
    assert server.requests[0][0] == path


def test_no_exchanges_are_not_sent(serve, source):
    server = serve(lengths)
    assert source(server.url).score([]) == []
    assert server.requests == []


@pytest.mark.parametrize("concurrency", [1, 3])
def test_concurrency_limits_the_open_requests(serve, source, concurrency):
    lock, now, most = threading.Lock(), [0], [0]

    def count(handler):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        lengths(handler)

    server = serve(count)
    source(server.url, batch_size=1, concurrency=concurrency).score(FIVE + FIVE)
    assert most[0] == concurrency
    assert len(server.open) == concurrency  # and connections are used again


def test_waiting_for_other_requests_does_not_count_towards_the_timeout(serve, source):
    def slow(handler):
        time.sleep(0.5)
        lengths(handler)

    server = serve(slow)
    found = source(server.url, batch_size=1, concurrency=1, timeout_s=2.0, retries=0)  # five take longer
    assert found.score(FIVE) == [3.0, 1.0, 4.0, 1.0, 5.0]


TROUBLES = {
    "503": answer(b"", 503),
    "500": answer(b"Traceback...", 500),
    "429": answer({}, 429),
    "408": answer({}, 408),
    "hangs up before it answers": Handler.hang_up,
    "hangs up in the middle": lambda handler: (handler.send(200, b'{"sc', Content_Length="99"), handler.hang_up()),
    "says no HTTP": lambda handler: (handler.wfile.write(b"SSH-2.0 hello\r\n\r\n"), handler.hang_up()),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_temporary_failures_are_tried_again(serve, source, trouble):
    server = serve(trouble, trouble, lengths)
    assert source(server.url).score(FIVE) == [3.0, 1.0, 4.0, 1.0, 5.0]
    assert len(server.requests) == 3


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "])
def test_a_request_that_takes_too_long_is_tried_again_even_if_bytes_trickle_in(serve, source, start):
    """In its body, or in a header that never ends."""
    go = threading.Event()

    def trickle(handler):
        handler.wfile.write(start)
        while not go.wait(0.02):
            handler.wfile.write(b" ")

    server = serve(trickle, lengths)
    assert source(server.url, timeout_s=1.5).score(FIVE) == [3.0, 1.0, 4.0, 1.0, 5.0]
    go.set()
    assert len(server.requests) >= 2


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (answer(b"all busy\nsecond line", 503), r"503 Service Unavailable: all busy, after 3 tries in \d s$"),
        (Handler.hang_up, r"(RemoteProtocol|Read)Error: .*, after 3 tries in \d s$"),
        (lambda handler: time.sleep(2.5), r"no reply within 1 s, after 3 tries in \d s$"),
    ],
)
def test_lasting_failures_end_in_an_error(serve, source, trouble, message):
    server = serve(trouble)
    with pytest.raises(RewardError, match=rf"^reward far \(http://127\.0\.0\.1:\d+/score\): {message}"):
        source(server.url, retries=2, timeout_s=1.0).score(FIVE)
    assert len(server.requests) == 3


def test_nobody_listens(serve, source):
    server = serve(lengths)
    server.stop()
    with pytest.raises(RewardError, match=r"ConnectError: .*, after 2 tries"):
        source(server.url, retries=1).score(FIVE)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (answer(b'{"scores": [1, 2, NaN]}'), "wanted a finite number, got nan, for the response 'xxxx'"),
        (answer(b'{"scores": [1, 2, 1e999]}'), "wanted a finite number, got inf"),
        (answer({"scores": [1, 2]}), "wanted 3 numbers, one per response, got 2"),
        (answer({"scores": [1, "2", 3]}), "got '2' among the scores"),
        (answer({"scores": [1, None, 3]}), "got None among the scores"),
        (answer({"scores": [1, True, 3]}), "got True among the scores"),
        (answer({"scores": [[1], [2], [3]]}), r"got \[1\] among the scores"),
        (answer(b'{"scores": [1, 2, 1' + b"0" * 400 + b"]}"), "wanted a finite number, got 1000"),
        (answer([1, 2, 3]), r'wanted {"scores": \[...\]}, got \[1, 2, 3\]'),
        (answer({"score": [1, 2, 3]}), "got {'score'"),
        (answer({"scores": 1}), "got {'scores': 1}"),
        (answer(b"<html>welcome"), "got no JSON: b'<html>welcome'"),
        (answer(b""), "got no JSON: b''"),
        (answer(b"\xff\xfe\x00"), "got no JSON"),
        (answer(b"[" * 60_000), "got no JSON"),
        (answer(b" " * 70_000), "wanted 3 numbers, got more than 66304 bytes"),
        (answer(b"no gzip", Content_Encoding="gzip"), "the reply cannot be decompressed"),
        (answer(b"", 204), "got no JSON"),
    ],
)
def test_a_wrong_reply_is_an_error_at_once(serve, source, lie, message):
    server = serve(lie)
    with pytest.raises(RewardError, match=message) as caught:
        source(server.url).score(FIVE[:3])
    assert len(server.requests) == 1
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_an_endless_reply_is_cut_off(serve, source):
    sent = [0]

    def pour(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                sent[0] += handler.wfile.write(b" " * 65536)
        except OSError:
            handler.close_connection = True

    server = serve(pour)
    with pytest.raises(RewardError, match="got more than"):
        source(server.url, timeout_s=20).score(FIVE)
    assert sent[0] < 50_000_000


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_an_error_at_once_with_its_first_line(serve, source, status):
    server = serve(answer(b"\n not like \x1b[31mthis\nmore", status))
    with pytest.raises(RewardError, match=rf"{status} .*: not like \ufffd\[31mthis$"):
        source(server.url).score(FIVE)
    assert len(server.requests) == 1


def test_a_redirect_is_not_followed_and_takes_no_secret_along(serve, source, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "Bearer hidden")
    elsewhere = serve(lengths)
    server = serve(answer(b"", 307, Location=f"{elsewhere.url}/score?key=1"))
    with pytest.raises(RewardError, match=rf"307, a redirect to {elsewhere.url}/score; redirects are not followed"):
        source(server.url, auth_env="TEST_KEY").score(FIVE)
    assert elsewhere.requests == []


def test_the_authorization_is_sent_and_written_nowhere(serve, source, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEST_KEY", "Bearer hidden \n")
    server = serve(answer(b"", 503), answer(b"", 401))
    found = source(f"{server.url}/score?token=nobodys", auth_env="TEST_KEY")
    with pytest.raises(RewardError) as caught:
        found.score(FIVE)
    assert [headers["Authorization"] for _, headers, _ in server.requests] == ["Bearer hidden"] * 2
    told = f"{caught.value!r} {found!r} {caplog.text} {capfd.readouterr()}"
    assert "503" in told
    assert "401" in told
    assert "hidden" not in told
    assert "nobodys" not in told


@pytest.mark.parametrize("value", [None, "", "  ", "Bearer a\nX-Evil: b", "Bearer \u00e4"])
def test_an_invalid_authorization_is_refused(source, monkeypatch, value):
    monkeypatch.delenv("TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(InputError, match=r"^reward\[0\]\.auth_env: .*TEST_KEY") as caught:
        source("http://127.0.0.1:1", auth_env="TEST_KEY")
    assert "Bearer a" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://me:secret@host/score", "must not contain a login"),
        ("http://", "must be http://host:port/path"),
        ("http://host:99999999", "must be http://host:port/path"),
        ("http://host:port", "wanted http://host:port/path"),
        ("http://[::1", "wanted http://host:port/path"),
    ],
)
def test_an_invalid_url_is_refused(source, url, message):
    with pytest.raises(InputError, match=rf"^reward\[0\]\.url.*{message}") as caught:
        source(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_a_proxy_of_the_environment_does_not_see_this_machine(serve, source, monkeypatch, host):
    server, proxy = serve(lengths), serve(answer(b"", 403))
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert source(f"http://{host}:{server.server_port}").score(FIVE[:1]) == [3.0]
    assert proxy.requests == []


def test_a_proxy_of_the_environment_is_used_for_others(serve, source, monkeypatch):
    proxy = serve(lengths)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert source("http://scores.invalid").score(FIVE[:1]) == [3.0]
    assert proxy.requests[0][0] == "http://scores.invalid/score"


def test_a_service_may_restart_between_two_calls(serve, source):
    server = serve(lengths)
    found = source(server.url, retries=1)
    found.score(FIVE)
    server.stop()
    again = serve(lengths, port=server.server_port)
    assert found.score(FIVE) == [3.0, 1.0, 4.0, 1.0, 5.0]
    assert len(again.requests) == 1


def test_a_service_may_restart_in_the_middle_of_a_call(serve, source):
    stopped = threading.Event()

    def never(handler):
        stopped.set()
        time.sleep(0.3)
        handler.hang_up()

    server = serve(lengths, lengths, never)
    started = []

    def restart():
        stopped.wait(10)
        server.stop()
        time.sleep(0.1)
        started.append(serve(lengths, port=server.server_port))

    thread = threading.Thread(target=restart)
    thread.start()
    scores = source(server.url, batch_size=1, concurrency=2, retries=8).score(FIVE * 3)
    thread.join()
    assert scores == [3.0, 1.0, 4.0, 1.0, 5.0] * 3
    assert started[0].requests


def waits(source_, tries, after=None):
    """The pauses before further tries."""
    return [source_._pause_s(number, http._retry_after_s(after)) for number in range(1, tries + 1)]


def test_pauses_double_with_a_jitter_and_have_an_end(source, monkeypatch):
    found = source("http://127.0.0.1:1")
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 1.0)
    for _ in range(50):
        pauses = waits(found, 9)
        for pause, middle in zip(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256], strict=True):
            assert min(60, 0.75 * middle) <= pause <= min(60, 1.25 * middle)
    assert len({waits(found, 1)[0] for _ in range(20)}) > 1


def test_retry_after_is_honoured_in_both_forms_within_a_minute(source):
    found = source("http://127.0.0.1:1")
    assert waits(found, 1, "7") == [7.0]
    assert waits(found, 1, "100000") == [60.0]
    date = email.utils.format_datetime(
        datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30), usegmt=True
    )
    assert 25 < waits(found, 1, date)[0] <= 30
    for nothing in (None, "soon", "-3", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert waits(found, 1, nothing)[0] < 1


def test_retry_after_is_waited_for(serve, source):
    server = serve(answer(b"", 429, Retry_After="1"), lengths)
    started = time.monotonic()
    source(server.url).score(FIVE)
    assert time.monotonic() - started >= 1


def test_retries_leave_the_random_numbers_of_training_alone(serve, source):
    server = serve(answer(b"", 503), lengths)
    random.seed(3)
    expected = random.random()
    random.seed(3)
    source(server.url).score(FIVE)
    assert random.random() == expected


def test_a_failure_ends_the_other_requests(serve, source):
    server = serve(answer(b"", 400))
    with pytest.raises(RewardError, match="400"):
        source(server.url, batch_size=1, concurrency=1).score(FIVE * 10)
    assert len(server.requests) < 50


def test_every_retry_is_logged_with_its_reason(serve, source, caplog):
    server = serve(answer(b"one moment", 503), lengths)
    source(server.url).score(FIVE)
    (record,) = [each for each in caplog.records if each.name == "rlhf"]
    assert "503 Service Unavailable: one moment; try 2 in 0.0 s" in record.getMessage()
    assert record.levelno == logging.WARNING
    assert record.exc_info is None


def test_closing_ends_the_thread_and_the_connections(serve, source):
    found = source(serve(lengths).url)
    found.score(FIVE)
    found.close()
    found.close()
    deadline = time.monotonic() + 5
    while [thread for thread in threading.enumerate() if thread.name.startswith("reward far")]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_reply_counts_as_progress(serve, source):
    server = serve(lambda handler: answer({"scores": [PROGRESS.ticked_at]})(handler))
    first, second = source(server.url, batch_size=1, concurrency=1).score(FIVE[:2])
    assert second > first
