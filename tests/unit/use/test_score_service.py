"""The application of `rlhf serve-reward`, with a function in the place of a model."""

import asyncio
import json
import re
import threading

import httpx
import pytest

from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.use import score_service as service
from rlhf_cli.use.score_service import Info, Limits, make_app
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


def test_it_answers_with_scores_and_says_what_it_is():
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
def test_what_is_no_request_is_refused_in_one_line(content, detail):
    answer = ask(make_app(lengths, INFO), content=content, headers={"Content-Type": "application/json"})
    said = refused(answer, 422)
    assert len(said) <= 500
    assert re.search(detail, said)


def test_limits_of_a_request():
    app = make_app(lengths, INFO, Limits(exchanges=2, num_bytes=1000))
    assert ask(app, json=body("a", "b")).status_code == 200
    assert refused(ask(app, json=body("a", "b", "c")), 413) == "at most 2 exchanges a request, got 3"
    assert refused(ask(app, json=body("a" * 1000)), 413) == "at most 1000 bytes a request"


def test_a_body_without_an_end_is_not_kept():
    sent = []

    async def endless():
        while True:
            sent.append(1000)
            yield b" " * 1000

    app = make_app(lengths, INFO, Limits(num_bytes=10_000))
    refused(ask(app, content=endless()), 413)
    assert sum(sent) < 20_000


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(service, "_READ_S", 0.05)

    async def hesitant():
        yield b"{"
        await asyncio.sleep(20)

    async def late(scope, receive, send):
        chunks = hesitant()

        async def slow():
            return {"type": "http.request", "body": await anext(chunks), "more_body": True}

        await make_app(lengths, INFO)(scope, slow, send)

    assert refused(ask(late, json={}), 408) == "the request did not come in within 0.05 s"


@pytest.mark.parametrize("given", [None, "Bearer", "Bearer wrong", "right", "bearer right", "Bearer right "])
def test_without_the_token_nothing_but_health_is_answered(given):
    app = make_app(lengths, INFO, token="right")
    headers = {} if given is None else {"Authorization": given}
    for method, path in (("POST", "/score"), ("GET", "/info"), ("GET", "/openapi.json"), ("GET", "/nothing")):
        answer = ask(app, method, path, headers=headers, **({"json": body("a")} if method == "POST" else {}))
        assert refused(answer, 401) == "wanted `Authorization: Bearer TOKEN`"
    assert ask(app, "GET", "/health").status_code == 200


def test_with_the_token_all_is_answered():
    app = make_app(lengths, INFO, token="right")
    answer = ask(app, json=body("abc"), headers={"Authorization": "Bearer right"})
    assert answer.json() == {"scores": [3.0]}


def test_requests_that_wait_together_are_scored_together_by_one_thread():
    calls, threads, go = [], set(), threading.Event()

    def score(exchanges):
        calls.append(len(exchanges))
        threads.add(threading.get_ident())
        go.wait(10)
        return lengths(exchanges)

    async def all_of_them(app):
        async with client_of(app) as client:
            first = asyncio.create_task(client.post("/score", json=body("x")))
            while not calls:
                await asyncio.sleep(0.01)
            others = [asyncio.create_task(client.post("/score", json=body("a" * n, "b"))) for n in range(1, 6)]
            await asyncio.sleep(1)  # all five wait by now
            go.set()
            return [(await task).json()["scores"] for task in [first, *others]]

    found = asyncio.run(all_of_them(make_app(score, INFO, Limits(exchanges=6))))
    assert found == [[1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0], [5.0, 1.0]]
    assert calls == [1, 6, 4]  # no more together than one request may hold
    assert len(threads) == 1


def test_only_the_request_that_is_to_blame_fails():
    go = threading.Event()

    def score(exchanges):
        go.wait(10)
        if any(exchange.response == "too long" for exchange in exchanges):
            raise InputError("at most 8 tokens")
        return lengths(exchanges)

    async def three(app):
        async with client_of(app) as client:
            tasks = [asyncio.create_task(client.post("/score", json=body(text))) for text in ("x", "too long", "abc")]
            await asyncio.sleep(0.2)
            go.set()
            return [await task for task in tasks]

    first, second, third = asyncio.run(three(make_app(score, INFO)))
    assert first.json() == {"scores": [1.0]}
    assert refused(second, 422) == "at most 8 tokens"
    assert third.json() == {"scores": [3.0]}


def test_a_model_without_a_score_is_said():
    def score(exchanges):
        raise RewardError("wanted a finite number,\ngot nan")

    assert refused(ask(make_app(score, INFO), json=body("a")), 500) == "wanted a finite number, got nan"


def test_when_too_much_waits_the_next_is_told_to_come_again():
    go = threading.Event()

    def score(exchanges):
        go.wait(10)
        return lengths(exchanges)

    async def crowd(app):
        async with client_of(app) as client:
            tasks = [asyncio.create_task(client.post("/score", json=body("a"))) for _ in range(20)]
            while not any(task.done() for task in tasks):
                await asyncio.sleep(0.01)
            go.set()
            return [await task for task in tasks]

    answers = asyncio.run(crowd(make_app(score, INFO, Limits(exchanges=1))))
    full = [answer for answer in answers if answer.status_code == 503]
    assert len(answers) - len(full) >= 8
    assert full
    assert {answer.headers["Retry-After"] for answer in full} == {"1"}


def test_who_waits_at_the_end_is_told_to_come_again():
    begun, go = threading.Event(), threading.Event()

    def score(exchanges):
        begun.set()
        go.wait(10)
        return lengths(exchanges)

    async def end(app):
        async with client_of(app) as client:
            tasks = [asyncio.create_task(client.post("/score", json=body("a"))) for _ in range(3)]
            while not begun.is_set():
                await asyncio.sleep(0.01)
            app.state.give_up()
            answers = [await asyncio.wait_for(task, 5) for task in tasks]
            go.set()
            return [*answers, await client.post("/score", json=body("a"))]

    answers = asyncio.run(end(make_app(score, INFO, Limits(exchanges=1))))
    assert [refused(answer, 503) for answer in answers] == ["the service ends"] * 4
    assert {answer.headers["Retry-After"] for answer in answers} == {"1"}


def test_other_ways_and_places_are_refused_as_the_protocol_says():
    app = make_app(lengths, INFO)
    assert refused(ask(app, "GET", "/nothing"), 404) == "Not Found"
    wrong = ask(app, "GET", "/score")
    assert (refused(wrong, 405), wrong.headers["Allow"]) == ("Method Not Allowed", "POST")


def test_the_description_is_fresh():
    assert (REPOSITORY / "docs/reward_service.json").read_text("utf-8") == script("make_service_docs").render()


def test_the_description_knows_what_a_client_needs():
    described = json.loads((REPOSITORY / "docs/reward_service.json").read_text("utf-8"))
    assert set(described["paths"]) == {"/health", "/info", "/score"}
    assert set(described["paths"]["/score"]["post"]["responses"]) == {"200", "401", "408", "413", "422", "500", "503"}
