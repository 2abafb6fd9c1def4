"""Generate responses: the interface of a rollout engine."""

from __future__ import annotations

from typing import Protocol

from rlhf_cli.data.token_batches import TokenSequence


class RolloutEngine(Protocol):
    """Generates responses with the policy's current weights."""

    def sample(self, prompts: list[tuple[int, ...]], keys: list[str], greedy: bool = False) -> list[TokenSequence]:
        """Return one response per prompt, in order, including its end token if one was sampled.

        keys: one text per prompt that seeds its random draws. greedy: always take the likeliest token.
        All ranks must call it together; their numbers of prompts and lengths may differ.
        """
