"""Example reward functions, to use or to adapt.

    rlhf train-ppo conf=my_ppo.yaml 'reward=[{name: exact, function: examples/rewards.py:exact}]'

A function receives keyword arguments: `prompts` and `responses`, lists of strings of equal length, and any columns of
the prompt file that its signature names. It returns one number per response (docs/rewards.md).
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from typing import Any

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_MAX_WORDS = 60


def exact(responses: Sequence[str], answer: Sequence[Any]) -> list[float]:
    """Return 1 if the last number (or the last line) of a response equals its row's `answer`, else 0."""
    return [float(_is_correct(response, expected)) for response, expected in zip(responses, answer, strict=True)]


def matches(responses: Sequence[str], pattern: Sequence[str | None] = ()) -> list[float]:
    """Return 1 if a response matches its row's regular expression `pattern`, by default a polite word; else 0."""
    patterns = pattern or [None] * len(responses)
    return [
        float(re.search(expression or r"(?i)\b(please|thanks?|sorry|glad|happy)\b", response) is not None)
        for response, expression in zip(responses, patterns, strict=True)
    ]


def brevity(responses: Sequence[str]) -> list[float]:
    """Return 0 for up to 60 words, and a logarithmic penalty for more: 120 words cost 0.69.

    Use it with a small weight next to another source: alone, it rewards silence.
    """
    return [min(0.0, math.log(_MAX_WORDS / max(1, len(response.split())))) for response in responses]


def sentiment(responses: Sequence[str]) -> list[float]:
    """Return how positive a response sounds, from -1 to 1 (VADER, a lexicon of English; extra `sentiment`)."""
    return [float(_analyzer().polarity_scores(response)["compound"]) for response in responses]


async def asked(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Return the verdicts of a slow judge, queried for all pairs at once; replace the judge with an API client."""
    return await asyncio.gather(*(_judge(*pair) for pair in zip(prompts, responses, strict=True)))


async def _judge(prompt: str, response: str) -> float:
    """Return the share of the prompt's words that occur in the response; a real judge would be awaited here."""
    await asyncio.sleep(0)
    words = set(prompt.lower().split())
    return len(words & set(response.lower().split())) / max(1, len(words))


def _is_correct(response: str, expected: Any) -> bool:
    if expected is None:  # a row without an answer
        return False
    is_number = _NUMBER.fullmatch(str(expected).strip()) is not None
    parts = _NUMBER.findall(response) if is_number else response.strip().splitlines()
    return bool(parts) and _normalised(parts[-1]) == _normalised(str(expected))


def _normalised(text: str) -> str:
    """Return a text without case, surrounding spaces, a final full stop, and the commas and `.0` of numbers."""
    text = text.strip().rstrip(".").lower()
    return str(Decimal(text.replace(",", "")).normalize()) if _NUMBER.fullmatch(text) else text


@cache
def _analyzer() -> Any:
    """Return the analyzer; it reads its lexicon once."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
