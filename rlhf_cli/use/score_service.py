"""What `rlhf serve-reward` answers: the protocol of docs/rewards.md, which `HttpSource` speaks, as a FastAPI app.

Every request waits for the model; those that wait together are read together, in batches of like length.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

import rlhf_cli
from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.rewards import source
from rlhf_cli.system.text import one_line

Score = Callable[[Sequence[source.Exchange]], list[float]]
_READ_S = 60.0  # within which a request must have come in
_FULL = 8  # requests of the largest size that may wait; the next ones are told to come again
_MAX_SAID = 500  # characters
_ENDS = "the service ends"


def _writable(text: str) -> str:
    """Return a text that UTF-8 can hold; JSON can name half a character, which no tokenizer reads."""
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_writable)]


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Text = Field(description="system, user, assistant, or what else the model's template knows")
    content: Text


class Exchange(BaseModel):
    """A conversation up to a response, and the response."""

    model_config = ConfigDict(extra="forbid")
    messages: list[Message] = Field(min_length=1, description="the last one is what is answered")
    response: Text = Field(description="without end tokens")
    columns: dict[str, Any] = Field(default={}, description="other columns of the prompt's row; a model ignores them")


class ScoreRequest(BaseModel):
    """What is to be scored."""

    model_config = ConfigDict(extra="forbid")
    exchanges: list[Exchange]


class Scores(BaseModel):
    """A finite number for each exchange, in order."""

    scores: list[float]


class Health(BaseModel):
    """It listens; what it says of the model is at /info."""

    status: str = "ok"


class Info(BaseModel):
    """What scores here, and how it reads a conversation."""

    model: str
    template: str = Field(
        description="chat: its tokenizer's template; plain: messages between empty lines; pair: those, response"
    )
    system_prompt: str | None = Field(description="put before a conversation that has none")
    dtype: str
    device: str
    version: str = rlhf_cli.__version__


class Refusal(BaseModel):
    """Why there is no answer, in one line."""

    detail: str


@dataclass(frozen=True)
class Limits:
    """How much one request may be."""

    exchanges: int = 1024
    num_bytes: int = 16 * 2**20


def make_app(score: Score, info: Info, limits: Limits = Limits(), token: str | None = None) -> FastAPI:
    """Return the application; `score` is called by one thread, one call at a time.

    `app.state.give_up()` ends all waiting, in the thread of the event loop: requests get status 503.

    token: what every request but GET /health must carry as `Authorization: Bearer TOKEN`; None: no matter who asks.
    """
    waiting = _Waiting(score, limits.exchanges)
    refusals: dict[int | str, dict[str, Any]]
    refusals = {status: {"model": Refusal} for status in (401, 408, 413, 422, 500, 503)}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        waiting.close()

    app = FastAPI(
        title="Scores of a reward model",
        description="The protocol that `url` of a source in `reward: [...]` speaks; docs/rewards.md.",
        version=rlhf_cli.__version__,
        lifespan=lifespan,
        docs_url=None,  # its page would fetch scripts from a network
        redoc_url=None,
    )
    app.add_middleware(_Gate, num_bytes=limits.num_bytes, token=token)
    app.state.give_up = waiting.give_up
    app.add_exception_handler(RequestValidationError, _unfit)
    app.add_exception_handler(HTTPException, _unread)
    for kind, status in ((_TooMany, 413), (InputError, 422), (RewardError, 500), (_Full, 503)):
        app.add_exception_handler(kind, partial(_refused, status))

    @app.get("/health")
    async def health() -> Health:
        """Say that it listens."""
        return Health()

    @app.get("/info", responses={401: {"model": Refusal}})
    async def about() -> Info:
        """Say what scores here."""
        return info

    @app.post("/score", responses=refusals)
    async def scores(request: ScoreRequest) -> Scores:
        """Score responses; all of them or, with a reason, none."""
        asked = [
            source.Exchange([dict(message) for message in each.messages], each.response, each.columns)
            for each in request.exchanges
        ]
        if len(asked) > limits.exchanges:
            raise _TooMany(f"at most {limits.exchanges} exchanges a request, got {len(asked)}")
        return Scores(scores=await waiting.scores(asked))

    return app


class _TooMany(Exception):
    """A request holds more exchanges than one may."""


class _Full(Exception):
    """So many exchanges wait that more had better come again."""


class _Waiting:
    """Exchanges that wait for the model; those that wait together are scored together."""

    def __init__(self, score: Score, most: int) -> None:
        self._score, self._most = score, most
        self._asked: list[tuple[list[source.Exchange], asyncio.Future[list[float]]]] = []
        self._open: set[asyncio.Future[list[float]]] = set()  # all that wait, also those that are being scored
        self._has_given_up = False
        self._turns: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "scores")

    async def scores(self, exchanges: list[source.Exchange]) -> list[float]:
        """Return the scores once it is their turn; raise _Full, or what `score` raises."""
        if self._has_given_up:
            raise _Full(_ENDS)
        if sum(len(each) for each, _ in self._asked) + len(exchanges) > _FULL * self._most:
            raise _Full("too many requests wait")
        future: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._asked.append((exchanges, future))
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._work())
        return await future

    def give_up(self) -> None:
        """Tell all that wait, and whoever asks from now on, to come again: to the next one that serves."""
        self._has_given_up = True
        self._asked.clear()
        for future in tuple(self._open):
            _settle(future, _Full(_ENDS))

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        while self._asked:
            turn = self._next_turn()
            try:
                found = await self._ask([exchange for exchanges, _ in turn for exchange in exchanges])
            except Exception as error:
                await self._one_by_one(turn, error)
                continue
            for exchanges, future in turn:
                _settle(future, found[: len(exchanges)])
                found = found[len(exchanges) :]

    def _next_turn(self) -> list[tuple[list[source.Exchange], asyncio.Future[list[float]]]]:
        """Take the requests that have waited longest, together no more than one request may hold."""
        size = num = 0
        while num < len(self._asked) and (num == 0 or size + len(self._asked[num][0]) <= self._most):
            size += len(self._asked[num][0])
            num += 1
        turn, self._asked = self._asked[:num], self._asked[num:]
        return turn

    async def _one_by_one(
        self, turn: list[tuple[list[source.Exchange], asyncio.Future[list[float]]]], error: Exception
    ) -> None:
        """Let only the request fail that is to blame for it."""
        for exchanges, future in turn:
            if len(turn) == 1:
                _settle(future, error)
                return
            try:
                _settle(future, await self._ask(exchanges))
            except Exception as own:
                _settle(future, own)

    async def _ask(self, exchanges: list[source.Exchange]) -> list[float]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, exchanges)


def _settle(future: asyncio.Future[list[float]], outcome: list[float] | Exception) -> None:
    if future.done():  # who asked is gone
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


class _Gate:
    """Refuses, before anything is made of it, what may not come in or is too much."""

    def __init__(self, app: ASGIApp, num_bytes: int, token: str | None) -> None:
        self._app, self._num_bytes = app, num_bytes
        self._token = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        refusal: JSONResponse | None = None
        body = b""
        if not self._may(scope):
            refusal = _refusal(401, "wanted `Authorization: Bearer TOKEN`", WWW_Authenticate="Bearer")
        else:
            try:
                async with asyncio.timeout(_READ_S):
                    body = await self._body(receive)
            except TimeoutError:
                refusal = _refusal(408, f"the request did not come in within {_READ_S:g} s")
        if len(body) > self._num_bytes:
            refusal = _refusal(413, f"at most {self._num_bytes} bytes a request")
        if refusal is not None:
            refusal.headers["Connection"] = "close"  # what else is on its way is not read
            await refusal(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)

    def _may(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return self._token is None or hmac.compare_digest(given, self._token)

    async def _body(self, receive: Receive) -> bytes:
        """Return a body, of one that is too large not much more than the limit."""
        body = b""
        while len(body) <= self._num_bytes:
            event = await receive()
            body += event.get("body", b"")
            if not event.get("more_body", False):
                break
        return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the whole body first."""
    first: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Event:
        return first.pop() if first else await receive()

    return replay


async def _unfit(_: Request, error: Exception) -> JSONResponse:
    """Say what of a request is not as it should be; without repeating it, which may be long."""
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    where = ".".join(str(part) for part in faults[0]["loc"] if part != "body")
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    return _refusal(422, f"{where or 'body'}: {faults[0]['msg']}{more}")


async def _unread(_: Request, error: Exception) -> JSONResponse:
    """Say what the framework says; a body that it cannot read is as unfit as one of another form."""
    assert isinstance(error, HTTPException)
    return _refusal(422 if error.status_code == 400 else error.status_code, str(error.detail), **(error.headers or {}))


async def _refused(status: int, _: Request, error: Exception) -> JSONResponse:
    return _refusal(status, str(error), **({"Retry_After": "1"} if isinstance(error, _Full) else {}))


def _refusal(status: int, detail: str, **headers: str) -> JSONResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"detail": one_line(detail, _MAX_SAID)}, status, named)
