"""The application of `rlhf serve-reward`, with a function in the place of a model."""

import asyncio
import json
import re
import threading

import httpx
import pytest

from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.use.score_service import Info, make_app
from tests.conftest import REPOSITORY, script

INFO = Info(model="m", template="plain", system_prompt=None, dtype="float32", device="cpu")


def lengths(exchanges):
    return [float(len(exchange.response)) for exchange in exchanges]


def body(*responses):
    messages = [{"role": "user", "content": "Hello?"}]
    return {"exchanges": [{"messages": messages, "response": response} for response in responses]}


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def ask(app, method="POST", path="/score", **options):
    async def go():
        async with client_of(app) as client:
            return await client.request(method, path, **options)

    return asyncio.run(go())


def refused(answer, status):
    assert answer.status_code == status
    (detail,) = answer.json().values()
    assert "\n" not in detail
    return detail


def test_it_returns_scores_and_describes_the_model():
    seen = []
    app = make_app(lambda exchanges: seen.extend(exchanges) or lengths(exchanges), INFO)
    content = body("a", "bb")
    content["exchanges"][1]["columns"] = {"answer": 4}
    answer = ask(app, json=content)
    assert (answer.status_code, answer.json()) == (200, {"scores": [1.0, 2.0]})
    assert seen[0].messages == [{"role": "user", "content": "Hello?"}]
    assert [exchange.columns for exchange in seen] == [{}, {"answer": 4}]
    assert ask(app, "GET", "/health").json() == {"status": "ok"}
    assert ask(app, "GET", "/info").json()["model"] == "m"
    assert ask(app, json=body()).json() == {"scores": []}


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"{", "JSON decode error"),
        (b"", "Field required"),
        (b"[]", "Input should be a valid dictionary"),
        (b'{"exchanges": [{"messages": [], "response": "a"}]}', r"exchanges\.0\.messages: List should have at least 1"),
        (b'{"exchanges": [{"messages": "Hello?", "response": "a"}]}', r"exchanges\.0\.messages: .*list"),
        (b'{"exchanges": [{"response": 3}]}', r"messages: Field required, and 1 more"),
        (b'{"exchanges": [], "exchange": []}', "exchange: Extra inputs"),
        (json.dumps(body("a\ud800")).encode(), r"exchanges\.0\.response: .*surrogates not allowed"),
        (b"\xff", "error parsing the body"),
        (b"[" * 100_000, "."),
        (b'{"exchanges": ' + b"1" * 10_000 + b"}", "."),
    ],
)
def test_invalid_requests_are_refused_in_one_line(content, detail):
    answer = ask(make_app(lengths, INFO), content=content, headers={"Content-Type": "application/json"})
    said = refused(answer, 422)
    assert len(said) <= 500
    assert re.search(detail, said)


def test_a_request_that_is_too_long_or_of_unknown_length_is_refused_before_it_is_read():
    sent = []

    async def endless():
        while True:
            sent.append(1000)
            yield b" " * 1000

    app = make_app(lengths, INFO, max_bytes=1000)
    assert ask(app, json=body("a", "b")).status_code == 200
    assert refused(ask(app, json=body("a" * 1000)), 413).startswith("a request may have 1000 bytes, got 1")
    answer = ask(app, content=endless())
    assert refused(answer, 411) == "send the header Content-Length"
    assert answer.headers["Connection"] == "close"
    assert sent == []


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer wrong", "right", "bearer right", "Bearer right "])
def test_without_the_token_only_health_is_served(given):
    app = make_app(lengths, INFO, token="right")
    headers = {} if given is None else {"Authorization": given}
    for method, path in (("POST", "/score"), ("GET", "/info"), ("GET", "/openapi.json"), ("GET", "/nothing")):
        answer = ask(app, method, path, headers=headers, **({"json": body("a")} if method == "POST" else {}))
        assert refused(answer, 401) == "send the header `Authorization: Bearer TOKEN`"
    assert ask(app, "GET", "/health").status_code == 200


def test_with_the_token_requests_are_served():
    app = make_app(lengths, INFO, token="right")
    answer = ask(app, json=body("abc"), headers={"Authorization": "Bearer right"})
    assert answer.json() == {"scores": [3.0]}


def test_one_thread_scores_one_request_at_a_time_and_only_a_bad_one_fails():
    calls, threads, go = [], set(), threading.Event()

    def score(exchanges):
        calls.append([exchange.response for exchange in exchanges])
        threads.add(threading.get_ident())
        go.wait(10)
        if calls[-1] == ["too long"]:
            raise InputError("at most 8 tokens")
        return lengths(exchanges)

    async def all_of_them(app):
        async with client_of(app) as client:
            texts = ("x", "too long", "abc")
            tasks = [asyncio.create_task(client.post("/score", json=body(text))) for text in texts]
            while not calls:
                await asyncio.sleep(0.01)
            assert (await client.get("/health")).status_code == 200
            await asyncio.sleep(0.2)
            assert len(calls) == 1
            go.set()
            return [await task for task in tasks]

    first, second, third = asyncio.run(all_of_them(make_app(score, INFO)))
    assert first.json() == {"scores": [1.0]}
    assert refused(second, 422) == "at most 8 tokens"
    assert third.json() == {"scores": [3.0]}
    assert sorted(calls) == [["abc"], ["too long"], ["x"]]
    assert len(threads) == 1


def test_a_failure_of_the_model_is_reported():
    def score(exchanges):
        raise RewardError("wanted a finite number,\ngot nan")

    assert refused(ask(make_app(score, INFO), json=body("a")), 500) == "wanted a finite number, got nan"


def test_other_methods_and_paths_are_refused():
    app = make_app(lengths, INFO)
    assert refused(ask(app, "GET", "/nothing"), 404) == "Not Found"
    wrong = ask(app, "GET", "/score")
    assert (refused(wrong, 405), wrong.headers["Allow"]) == ("Method Not Allowed", "POST")


def test_the_description_is_fresh():
    assert (REPOSITORY / "docs/reward_service.json").read_text("utf-8") == script("make_service_docs").render()


def test_the_description_has_every_path_and_status():
    described = json.loads((REPOSITORY / "docs/reward_service.json").read_text("utf-8"))
    assert set(described["paths"]) == {"/health", "/info", "/score"}
    assert set(described["paths"]["/score"]["post"]["responses"]) == {"200", "401", "411", "413", "422", "500"}
