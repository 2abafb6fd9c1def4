"""What a reward source scores, and the checks that its scores must pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlhf_cli.config.errors import RewardError
from rlhf_cli.system.text import one_line

_MAX_SHOWN = 80  # characters of a response in a message
_MAX_FLOAT32 = 3.4e38


@dataclass(frozen=True)
class Exchange:
    """A conversation up to a response, and the response: what is to be scored."""

    messages: list[dict[str, str]]  # role and content; the response answers the last one
    response: str  # without end tokens
    columns: dict[str, Any] = field(default_factory=dict)  # the other columns of the prompt's row

    @property
    def prompt(self) -> str:
        """The text of the last message."""
        return self.messages[-1]["content"] if self.messages else ""


class RewardSource(Protocol):
    """Scores responses. One instance serves one rank of one run."""

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Return one finite score for each exchange, in order; raise RewardError if that fails."""

    def close(self) -> None:
        """Close connections and end threads."""


def validated_scores(scores: Any, exchanges: Sequence[Exchange], source: str) -> list[float]:
    """Return what a source returned as floats.

    source: its name in messages. Raises RewardError, with the response in question, if the number
    of scores is wrong or a score is not a finite number.
    """
    try:
        found = list(scores)
    except TypeError as error:
        raise RewardError(
            f"{source}: wanted a list of {len(exchanges)} numbers, got {type(scores).__name__}"
        ) from error
    if len(found) != len(exchanges):
        raise RewardError(f"{source}: wanted {len(exchanges)} numbers, one per response, got {len(found)}")
    return [_finite(score, exchange, source) for score, exchange in zip(found, exchanges, strict=True)]


def _finite(score: Any, exchange: Exchange, source: str) -> float:
    try:
        number = math.nan if isinstance(score, str | bytes) else float(score)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several numbers
        number = math.nan
    if abs(number) <= _MAX_FLOAT32:
        return number
    got = one_line(repr(score), _MAX_SHOWN)
    raise RewardError(f"{source}: wanted a finite number, got {got}, for {describe(exchange)}")


def describe(exchange: Exchange) -> str:
    """Return an exchange as messages show it."""
    response, prompt = (one_line(repr(text), _MAX_SHOWN) for text in (exchange.response, exchange.prompt))
    return f"the response {response} to {prompt}"
