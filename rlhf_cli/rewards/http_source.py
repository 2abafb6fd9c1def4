"""Scores from an HTTP service; docs/rewards.md has the protocol.

Asked is `POST {"exchanges": [{"messages": [...], "response": "...", "columns": {...}}]}`, answered `{"scores": [...]}`.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import ipaddress
import json
import logging
import math
import os
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.config.reward_options import LONGEST_PAUSE_S, RewardSourceConfig
from rlhf_cli.rewards.source import Exchange, validated_scores
from rlhf_cli.system.text import one_line
from rlhf_cli.system.watchdog import PROGRESS

FIRST_PAUSE_S = 1.0  # before the second try; then twice as long, and so on
_MAX_BYTES = (65_536, 256)  # of an answer, and for each score in it
_MAX_SHOWN = 200  # characters of what a service says
_BUSY = (408, 429)  # and all of 500 and more: another try may succeed

logger = logging.getLogger("rlhf")
logging.getLogger("httpx").setLevel(logging.WARNING)  # below that it writes down every URL, with its query


class HttpSource:
    """Asks a service for batches, a few at a time, in a thread with an event loop of its own.

    Tries again after lost connections, timeouts and answers that say that it is busy or broken; never after one that
    is wrong, which would be wrong again.
    """

    def __init__(self, config: RewardSourceConfig, key: str) -> None:
        """Connect to nothing yet; raise InputError for an address that is none, or where auth_env is not set.

        key: the source among the options (reward[0]), for messages.
        """
        assert config.url is not None
        self._url = _address(config.url, f"{key}.url")
        self._who = f"reward {config.name} ({self._url.copy_with(query=None)})"
        self._config = config
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", **_authorization(config, key)}
        try:
            self._client = httpx.AsyncClient(
                headers=headers,
                timeout=None,  # a try is timed as a whole
                limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
                follow_redirects=False,  # Authorization is for this address alone
                trust_env=not _is_loopback(self._url.host),  # a proxy of the environment does not see this machine
            )
        except Exception as error:  # of proxies, certificates and packages that the environment names
            reason = one_line(error, _MAX_SHOWN)
            raise InputError(
                f"{key}.url: no connection can be made with this environment ({reason}); see its variables of proxies "
                "(HTTPS_PROXY, ALL_PROXY, ...) and of certificates (SSL_CERT_FILE)"
            ) from error
        self._jitter = random.Random()  # leaves the numbers that training draws as they are
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name=self._who)
        self._thread.start()

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Return one finite score an exchange, in order; raise RewardError once the service fails for good."""
        future = asyncio.run_coroutine_threadsafe(self._score(exchanges), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # where a signal ended the waiting

    def close(self) -> None:
        """Close the connections, and let the thread end."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}  # where a signal ended the waiting for them
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._client.aclose()

    async def _score(self, exchanges: Sequence[Exchange]) -> list[float]:
        size = self._config.batch_size
        room = asyncio.Semaphore(self._config.concurrency)
        batches = [exchanges[start : start + size] for start in range(0, len(exchanges), size)]
        tasks = [asyncio.create_task(self._persist(batch, room)) for batch in batches]
        try:
            return [score for scores in await asyncio.gather(*tasks) for score in scores]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _persist(self, batch: Sequence[Exchange], room: asyncio.Semaphore) -> list[float]:
        """Return the scores of one batch, after as many tries as it takes and there are."""
        content = json.dumps({"exchanges": [_sent(exchange) for exchange in batch]}).encode()
        tries = AsyncRetrying(
            stop=stop_after_attempt(self._config.retries + 1),
            wait=self._pause_s,
            retry=retry_if_exception_type(_TryAgain),
            before_sleep=self._tell,
            reraise=True,
        )
        started = time.monotonic()
        try:
            async with room:
                scores = validated_scores(await tries(self._ask, content, len(batch)), batch, self._who)
            PROGRESS.tick()
            return scores
        except _TryAgain as error:
            num, seconds = self._config.retries + 1, time.monotonic() - started
            raise RewardError(f"{self._who}: {error}, after {num} tries in {seconds:.0f} s") from error

    async def _ask(self, content: bytes, num_scores: int) -> list[Any]:
        """Return what one request is answered with; raise _TryAgain, or RewardError where that makes no sense."""
        limit = _MAX_BYTES[0] + _MAX_BYTES[1] * num_scores
        headers = {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(self._config.timeout_s):
                async with self._client.stream("POST", self._url, content=content, headers=headers) as response:
                    body = await _read(response, limit)
        except TimeoutError as error:
            raise _TryAgain(f"no answer within {self._config.timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise _TryAgain(f"{type(error).__name__}: {one_line(error, _MAX_SHOWN) or 'no connection'}") from error
        except httpx.DecodingError as error:
            raise RewardError(f"{self._who}: the answer cannot be unpacked") from error
        self._check_status(response, body)
        if len(body) > limit:
            raise RewardError(f"{self._who}: wanted {num_scores} numbers, got more than {limit} bytes")
        return self._scores_in(body)

    def _check_status(self, response: httpx.Response, body: bytes) -> None:
        if response.is_success:
            return
        status = response.status_code
        lines = body.decode("utf-8", "replace").strip().splitlines()
        said = f"{status} {response.reason_phrase}".strip() + (f": {one_line(lines[0], _MAX_SHOWN)}" if lines else "")
        if status in _BUSY or status >= 500:
            raise _TryAgain(said, _retry_after_s(response.headers.get("Retry-After")))
        if response.has_redirect_location:
            target = one_line(response.headers["Location"].partition("?")[0], _MAX_SHOWN)
            said = f"{status}, it sends us to {target}; redirects are not followed, give the url that they lead to"
        raise RewardError(f"{self._who}: {said}")

    def _scores_in(self, body: bytes) -> list[Any]:
        wanted = f'{self._who}: wanted {{"scores": [...]}}, got'
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RewardError(f"{wanted} no JSON: {one_line(repr(body[:_MAX_SHOWN]), _MAX_SHOWN)}") from error
        if not isinstance(answer, dict) or not isinstance(answer.get("scores"), list):
            raise RewardError(f"{wanted} {one_line(repr(answer), _MAX_SHOWN)}")
        scores: list[Any] = answer["scores"]
        wrong = [score for score in scores if isinstance(score, bool) or not isinstance(score, int | float)]
        if wrong:
            raise RewardError(f"{wanted} {one_line(repr(wrong[0]), _MAX_SHOWN)} among the scores, which is no number")
        return scores

    def _pause_s(self, state: RetryCallState) -> float:
        """Return how long to wait before the next try: 1, 2, 4, ... s, a little more or less, or what the service asks.

        Ranks that lost the service together would else come back together.
        """
        error = state.outcome.exception() if state.outcome else None
        assert isinstance(error, _TryAgain)
        pause: float = FIRST_PAUSE_S * 2 ** (state.attempt_number - 1) * self._jitter.uniform(0.75, 1.25)
        return min(max(pause, error.after_s), LONGEST_PAUSE_S)

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        pause = state.next_action.sleep if state.next_action else 0.0
        logger.warning("%s: %s; try %d in %.1f s", self._who, error, state.attempt_number + 1, pause)


class _TryAgain(Exception):
    """A failure that may pass; after_s: how long the service wants to be left alone."""

    def __init__(self, said: str, after_s: float = 0.0) -> None:
        super().__init__(said)
        self.after_s = after_s


def _address(url: str, key: str) -> httpx.URL:
    """Return a service's address; one without a path gets /score."""
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InputError(f"{key}: {one_line(error, _MAX_SHOWN)}; wanted http://host:port/path") from error
    if found.userinfo:
        raise InputError(f"{key} must be without a login, which would be written down; see auth_env")
    if not found.host or not 0 < (found.port or 80) < 65536:
        raise InputError(f"{key} must be http://host:port/path, got {url}")
    return found if found.path != "/" else found.copy_with(path="/score")


def _authorization(config: RewardSourceConfig, key: str) -> dict[str, str]:
    if config.auth_env is None:
        return {}
    value = os.environ.get(config.auth_env, "").strip()
    if not value:
        raise InputError(f"{key}.auth_env: the environment has no {config.auth_env}, wanted 'Bearer ...'")
    if not (value.isascii() and value.isprintable()):
        raise InputError(f"{key}.auth_env: {config.auth_env} holds more than one line of printable ASCII")
    return {"Authorization": value}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


async def _read(response: httpx.Response, limit: int) -> bytes:
    """Return a body, or its first `limit` bytes and a few more."""
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > limit:
            break
    return body


def _retry_after_s(value: str | None) -> float:
    """Return the seconds that `Retry-After` asks for, in either of its forms (RFC 9110, 10.2.3); 0 without it."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _sent(exchange: Exchange) -> dict[str, Any]:
    columns = {name: _as_json(value) for name, value in exchange.columns.items()}
    return {"messages": exchange.messages, "response": exchange.response, "columns": columns}


def _as_json(value: Any) -> Any:
    """Return what JSON can hold of a column's value: dates as ISO 8601, null for NaN and for what has no form in it."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case datetime.date() | datetime.time():
            return value.isoformat()
        case dict():
            return {str(name): _as_json(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_as_json(inner) for inner in value]
    return None
