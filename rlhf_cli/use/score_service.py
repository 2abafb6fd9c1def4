"""The protocol of docs/rewards.md as a FastAPI app, for `rlhf serve-reward`."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field

import rlhf_cli
from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.system.text import one_line

Score = Callable[[Sequence[Exchange]], list[float]]
_MAX_DETAIL = 500  # characters


def _encodable(text: str) -> str:
    """Refuse a lone surrogate, which JSON can express but no tokenizer can read."""
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class ChatMessage(BaseModel, extra="forbid"):
    """One turn of a conversation."""

    role: Text = Field(description="system, user, assistant, or another role that the model's chat template knows")
    content: Text


class ExchangeBody(BaseModel, extra="forbid"):
    """A conversation up to a response, and the response."""

    messages: list[ChatMessage] = Field(min_length=1, description="the response answers the last one")
    response: Text = Field(description="without end tokens")
    columns: dict[str, Any] = Field(default={}, description="other columns of the prompt's row; a model ignores them")


class ScoreRequest(BaseModel, extra="forbid"):
    """The exchanges to score."""

    exchanges: list[ExchangeBody]


class Scores(BaseModel):
    """A finite number for each exchange, in order."""

    scores: list[float]


class Info(BaseModel):
    """The model, and how it renders a conversation."""

    model: str
    template: str = Field(
        description="chat: the tokenizer's chat template; plain: messages joined by empty lines; "
        "pair: these messages and the response as a pair of texts"
    )
    system_prompt: str | None = Field(description="used for a conversation that has none")
    dtype: str
    device: str
    version: str = rlhf_cli.__version__


class Refusal(BaseModel):
    """Why the request was refused, in one line."""

    detail: str


def make_app(score: Score, info: Info, max_bytes: int = 16 * 2**20, token: str | None = None) -> FastAPI:
    """Return the app. One thread calls `score`, for one request at a time.

    max_bytes: of a request. token: every request except GET /health must send it as `Authorization:
    Bearer TOKEN`; None: no token is needed.
    """
    app = FastAPI(
        title="Scores of a reward model",
        description="The protocol of a source with `url` in `reward: [...]`; see docs/rewards.md.",
        version=rlhf_cli.__version__,
        docs_url=None,  # the page would load scripts from the internet
        redoc_url=None,
    )
    thread = ThreadPoolExecutor(1, "scores")
    refusals: dict[int | str, dict[str, Any]] = {status: {"model": Refusal} for status in (401, 411, 413, 422, 500)}

    @app.middleware("http")
    async def admit(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Refuse a request before its body is held in memory."""
        refusal = None if request.url.path == "/health" else await _refusal(request, max_bytes, token)
        return refusal or await call_next(request)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the service accepts requests."""
        return {"status": "ok"}

    @app.get("/info", responses={401: {"model": Refusal}})
    async def about() -> Info:
        """Describe the model."""
        return info

    @app.post("/score", responses=refusals)
    async def scores(request: ScoreRequest) -> Scores:
        """Score all exchanges, or refuse the request."""
        exchanges = [
            Exchange([dict(message) for message in each.messages], each.response, each.columns)
            for each in request.exchanges
        ]
        return Scores(scores=await asyncio.get_running_loop().run_in_executor(thread, score, exchanges))

    app.add_exception_handler(RequestValidationError, _refuse_invalid)
    for kind, status in ((400, 422), (InputError, 422), (RewardError, 500)):  # 400: the body cannot be decoded
        app.add_exception_handler(kind, partial(_refuse_error, status))
    return app


async def _refusal(request: Request, max_bytes: int, token: str | None) -> JSONResponse | None:
    given = request.headers.get("Authorization", "").encode("latin-1")
    length = request.headers.get("Content-Length")
    if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
        refusal = refuse(401, "send the header `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"})
    elif request.method == "POST" and length is None:
        return refuse(411, "send the header Content-Length", {"Connection": "close"})
    elif int(length or 0) > max_bytes:
        refusal = refuse(413, f"a request may have {max_bytes} bytes, got {length}")
    else:
        return None
    if length is not None:
        async for _ in request.stream():  # discard the body: clients see a connection error if it is not read
            pass
    return refusal


def refuse(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return a response with the reason in one line."""
    return JSONResponse({"detail": one_line(detail, _MAX_DETAIL)}, status, headers)


async def _refuse_error(status: int, _: Request, error: Exception) -> JSONResponse:
    return refuse(status, str(getattr(error, "detail", error)))


async def _refuse_invalid(_: Request, error: Exception) -> JSONResponse:
    """Name the first invalid field, without repeating the request, which may be long."""
    assert isinstance(error, RequestValidationError)
    first, *others = error.errors()
    field = ".".join(str(part) for part in first["loc"] if part != "body")
    more = f", and {len(others)} more" if others else ""
    return refuse(422, f"{field or 'body'}: {first['msg']}{more}")
