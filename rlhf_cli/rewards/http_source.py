"""Scores from an HTTP service; docs/rewards.md describes the protocol.

The request is `POST {"exchanges": [{"messages": [...], "response": "...", "columns": {...}}]}`, the
reply `{"scores": [...]}`.
"""

from __future__ import annotations

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
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import httpx

from rlhf_cli.config.errors import InputError, RewardError
from rlhf_cli.config.reward_options import LONGEST_PAUSE_S, RewardSourceConfig
from rlhf_cli.rewards.source import Exchange, validated_scores
from rlhf_cli.rewards.timeout_worker import CallTimeoutError, call_with_timeout
from rlhf_cli.system.text import one_line
from rlhf_cli.system.watchdog import PROGRESS

FIRST_PAUSE_S = 1.0  # before the second try; later pauses double
_MAX_BYTES, _MAX_BYTES_PER_SCORE = 65_536, 256  # of a reply
_MAX_SHOWN = 200  # characters of a reply in a message
_BUSY = (408, 429)  # tried again, as is every status from 500

logger = logging.getLogger("rlhf")
logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs every URL with its query


class HttpSource:
    """Sends batches to a service, several at a time.

    Lost connections, timeouts and replies of a busy or broken service are tried again. Wrong
    replies are not: they would be wrong again.
    """

    def __init__(self, config: RewardSourceConfig, key: str) -> None:
        """Prepare the client; raise InputError for an invalid URL or an unset auth_env.

        key: the source among the options (reward[0]), for messages.
        """
        assert config.url is not None
        self._url = _parse_url(config.url, f"{key}.url")
        self._name = f"reward {config.name} ({self._url.copy_with(query=None)})"
        self._config = config
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", **_authorization(config, key)}
        try:
            self._client = httpx.Client(
                headers=headers,
                timeout=config.timeout_s,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=config.concurrency),
                follow_redirects=False,  # Authorization is for this address only
                trust_env=not _is_loopback(self._url.host),  # a proxy must not see requests to this machine
            )
        except Exception as error:  # from proxies, certificates and packages that the environment names
            reason = one_line(error, _MAX_SHOWN)
            raise InputError(
                f"{key}.url: cannot connect with this environment ({reason}); check its proxy variables "
                "(HTTPS_PROXY, ALL_PROXY, ...) and certificate variables (SSL_CERT_FILE)"
            ) from error
        self._jitter = random.Random()  # leaves the random numbers of the training alone
        self._threads = ThreadPoolExecutor(config.concurrency, self._name)

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Return one finite score for each exchange, in order.

        Raises RewardError for a wrong reply, or if the service keeps failing.
        """
        size, stop = self._config.batch_size, threading.Event()
        batches = [exchanges[start : start + size] for start in range(0, len(exchanges), size)]
        futures = [self._threads.submit(self._score_batch, batch, stop) for batch in batches]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()  # raises the first failure
            return [score for future in futures for score in future.result()]
        finally:  # after a failure or a signal: end the pauses of the others
            stop.set()
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Close the connections and end the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _score_batch(self, batch: Sequence[Exchange], stop: threading.Event) -> list[float]:
        """Return the scores of one batch after as many tries as it takes and the options allow."""
        content = json.dumps({"exchanges": [_to_json(exchange) for exchange in batch]}).encode()
        started = time.monotonic()
        for num_tries in range(1, self._config.retries + 2):
            try:
                scores = validated_scores(self._try(content, len(batch)), batch, self._name)
            except _RetryableError as error:
                if num_tries > self._config.retries or stop.is_set():
                    seconds = time.monotonic() - started
                    raise RewardError(f"{self._name}: {error}, after {num_tries} tries in {seconds:.0f} s") from error
                pause_s = self._pause_s(num_tries, error.retry_after_s)
                logger.warning("%s: %s; try %d in %.1f s", self._name, error, num_tries + 1, pause_s)
                stop.wait(pause_s)
            else:
                PROGRESS.tick()
                return scores
        raise AssertionError("the last try returns or raises")

    def _pause_s(self, num_tries: int, retry_after_s: float) -> float:
        """Return the pause after a try: 1, 2, 4, ... s, or retry_after_s if that is longer.

        It varies by a quarter, so that ranks that lost the service together do not come back
        together.
        """
        pause_s: float = FIRST_PAUSE_S * 2 ** (num_tries - 1) * self._jitter.uniform(0.75, 1.25)
        return min(max(pause_s, retry_after_s), LONGEST_PAUSE_S)

    def _try(self, content: bytes, num_scores: int) -> list[Any]:
        """Send one request; raise RewardError for a wrong reply, else _RetryableError."""
        timeout_s, max_bytes = self._config.timeout_s, _MAX_BYTES + _MAX_BYTES_PER_SCORE * num_scores
        try:  # httpx limits each read; this limits the request
            response, body = call_with_timeout(lambda: self._post(content, max_bytes), timeout_s)
        except (CallTimeoutError, httpx.TimeoutException) as error:
            raise _RetryableError(f"no reply within {timeout_s:g} s") from error
        except httpx.TransportError as error:
            reason = one_line(error, _MAX_SHOWN) or "no connection"
            raise _RetryableError(f"{type(error).__name__}: {reason}") from error
        except httpx.DecodingError as error:
            raise RewardError(f"{self._name}: the reply cannot be decompressed") from error
        self._check_status(response, body)
        if len(body) > max_bytes:
            raise RewardError(f"{self._name}: wanted {num_scores} numbers, got more than {max_bytes} bytes")
        return self._scores_in(body)

    def _post(self, content: bytes, max_bytes: int) -> tuple[httpx.Response, bytes]:
        """Send a request; return the response and its body, which is cut off after `max_bytes`."""
        headers, body = {"Content-Type": "application/json"}, b""
        deadline = time.monotonic() + self._config.timeout_s
        with self._client.stream("POST", self._url, content=content, headers=headers) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > deadline:  # nobody waits for this thread any more
                    raise CallTimeoutError
                if len(body) > max_bytes:
                    break
        return response, body

    def _check_status(self, response: httpx.Response, body: bytes) -> None:
        if response.is_success:
            return
        status = response.status_code
        lines = body.decode("utf-8", "replace").strip().splitlines()
        reply = f"{status} {response.reason_phrase}".strip() + (f": {one_line(lines[0], _MAX_SHOWN)}" if lines else "")
        if status in _BUSY or status >= 500:
            raise _RetryableError(reply, _retry_after_s(response.headers.get("Retry-After")))
        if response.has_redirect_location:
            target = one_line(response.headers["Location"].partition("?")[0], _MAX_SHOWN)
            reply = f"{status}, a redirect to {target}; redirects are not followed, set url to their target"
        raise RewardError(f"{self._name}: {reply}")

    def _scores_in(self, body: bytes) -> list[Any]:
        wanted = f'{self._name}: wanted {{"scores": [...]}}, got'
        try:
            reply = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RewardError(f"{wanted} no JSON: {one_line(repr(body[:_MAX_SHOWN]), _MAX_SHOWN)}") from error
        if not isinstance(reply, dict) or not isinstance(reply.get("scores"), list):
            raise RewardError(f"{wanted} {one_line(repr(reply), _MAX_SHOWN)}")
        scores: list[Any] = reply["scores"]
        wrong = [score for score in scores if isinstance(score, bool) or not isinstance(score, int | float)]
        if wrong:
            raise RewardError(f"{wanted} {one_line(repr(wrong[0]), _MAX_SHOWN)} among the scores, not a number")
        return scores


class _RetryableError(Exception):
    """A failure that may pass; retry_after_s: how long the service asks to wait."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def _parse_url(url: str, key: str) -> httpx.URL:
    """Return the URL of a service, with the path /score if it has none."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InputError(f"{key}: {one_line(error, _MAX_SHOWN)}; wanted http://host:port/path") from error
    if parsed.userinfo:
        raise InputError(f"{key} must not contain a login, which messages would show; use auth_env")
    if not parsed.host or not 0 < (parsed.port or 80) < 65536:
        raise InputError(f"{key} must be http://host:port/path, got {url}")
    return parsed if parsed.path != "/" else parsed.copy_with(path="/score")


def _authorization(config: RewardSourceConfig, key: str) -> dict[str, str]:
    if config.auth_env is None:
        return {}
    value = os.environ.get(config.auth_env, "").strip()
    if not value:
        raise InputError(f"{key}.auth_env: {config.auth_env} is not set in the environment, wanted 'Bearer ...'")
    if not (value.isascii() and value.isprintable()):
        raise InputError(f"{key}.auth_env: {config.auth_env} must be one line of printable ASCII")
    return {"Authorization": value}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _retry_after_s(value: str | None) -> float:
    """Return the seconds in a Retry-After header (RFC 9110, 10.2.3), 0 if it has none."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _to_json(value: Any) -> Any:
    """Return a value for JSON: dates as ISO 8601, null for NaN and for other types."""
    match value:
        case None | bool() | int() | str():
            return value
        case Exchange():
            return {"messages": value.messages, "response": value.response, "columns": _to_json(value.columns)}
        case float():
            return value if math.isfinite(value) else None
        case datetime.date() | datetime.time():
            return value.isoformat()
        case dict():
            return {str(name): _to_json(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_to_json(inner) for inner in value]
    return None
