"""Functions that score responses, to use or to start from.

    rlhf train-ppo conf=my_ppo.yaml 'reward=[{name: exact, function: examples/rewards.py:exact}]'

A function is called with keywords: `prompts` and `responses`, lists of strings of like length, and whatever columns of
the prompts' file it names; it returns a number for each response (docs/rewards.md).
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
_TOO_MANY_WORDS = 60


def exact(responses: Sequence[str], answer: Sequence[Any]) -> list[float]:
    """Return 1 where a response ends with its row's `answer`, else 0: by its last number, or by its last line."""
    return [float(_is_right(response, right)) for response, right in zip(responses, answer, strict=True)]


def matches(responses: Sequence[str], pattern: Sequence[str | None] = ()) -> list[float]:
    """Return 1 where a regular expression is found in a response: its row's `pattern`, or else a polite word."""
    wanted = pattern or [None] * len(responses)
    return [
        float(re.search(one or r"(?i)\b(please|thanks?|sorry|glad|happy)\b", response) is not None)
        for response, one in zip(responses, wanted, strict=True)
    ]


def brevity(responses: Sequence[str]) -> list[float]:
    """Return 0 for up to 60 words and less for more, by the logarithm: twice as many cost 0.69.

    Beside another source, with a small weight: alone it is at its best with silence.
    """
    return [min(0.0, math.log(_TOO_MANY_WORDS / max(1, len(response.split())))) for response in responses]


def sentiment(responses: Sequence[str]) -> list[float]:
    """Return how positive a response sounds, from -1 to 1 (VADER, a lexicon of English; extra `sentiment`)."""
    return [float(_analyzer().polarity_scores(response)["compound"]) for response in responses]


async def asked(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Return what a slow judge says of each pair, asked about all of them at once: a stand-in for an API client."""
    return await asyncio.gather(*(_judge(*pair) for pair in zip(prompts, responses, strict=True)))


async def _judge(prompt: str, response: str) -> float:
    """Return the share of the prompt's words that come up in the response; a real judge would be awaited here."""
    await asyncio.sleep(0)
    words = set(prompt.lower().split())
    return len(words & set(response.lower().split())) / max(1, len(words))


def _is_right(response: str, right: Any) -> bool:
    if right is None:  # a row without an answer
        return False
    is_number = _NUMBER.fullmatch(str(right).strip()) is not None
    parts = _NUMBER.findall(response) if is_number else response.strip().splitlines()
    return bool(parts) and _plain(parts[-1]) == _plain(str(right))


def _plain(text: str) -> str:
    """Return a text without what does not matter: case, spaces around it, a full stop, commas and `.0` of numbers."""
    text = text.strip().rstrip(".").lower()
    return str(Decimal(text.replace(",", "")).normalize()) if _NUMBER.fullmatch(text) else text


@cache
def _analyzer() -> Any:
    """Return the analyzer, which reads its lexicon once."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
