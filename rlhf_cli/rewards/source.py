"""What a source outside of the trainer's models is asked, and what it may answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlhf_cli.config.errors import RewardError
from rlhf_cli.system.text import one_line

_MAX_SHOWN = 80  # characters of a response in a message
_LARGEST = 3.4e38  # that float32 holds


@dataclass(frozen=True)
class Exchange:
    """A conversation up to a response, and the response: what is to be scored."""

    messages: list[dict[str, str]]  # role and content; the last one is what is answered
    response: str  # without end tokens
    columns: dict[str, Any] = field(default_factory=dict)  # the other columns of the prompt's row

    @property
    def prompt(self) -> str:
        """The text of the last message."""
        return self.messages[-1]["content"] if self.messages else ""


class Source(Protocol):
    """A function or a service. One instance serves one rank of one run."""

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Return one finite score an exchange, in order; raise RewardError where there is none to be had."""

    def close(self) -> None:
        """Give back connections and threads."""


def checked_scores(scores: Any, exchanges: Sequence[Exchange], who: str) -> list[float]:
    """Return what a source answered as floats; raise RewardError, with the response, for a wrong count or number.

    who: the source, for messages.
    """
    try:
        found = list(scores)
    except TypeError as error:
        raise RewardError(f"{who}: wanted a list of {len(exchanges)} numbers, got {type(scores).__name__}") from error
    if len(found) != len(exchanges):
        raise RewardError(f"{who}: wanted {len(exchanges)} numbers, one a response, got {len(found)}")
    numbers = []
    for score, exchange in zip(found, exchanges, strict=True):
        try:
            number = math.nan if isinstance(score, str | bytes) else float(score)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # what tensors of several numbers raise
            number = math.nan
        if not abs(number) <= _LARGEST:
            what = one_line(repr(score), _MAX_SHOWN)
            raise RewardError(f"{who}: wanted a finite number, got {what}, for {shown(exchange)}")
        numbers.append(number)
    return numbers


def shown(exchange: Exchange) -> str:
    """Name an exchange in a message."""
    return (
        f"the response {one_line(repr(exchange.response), _MAX_SHOWN)} to {one_line(repr(exchange.prompt), _MAX_SHOWN)}"
    )
