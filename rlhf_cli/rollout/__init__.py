"""Prompts in, responses out: what the trainer asks of a rollout engine."""

from __future__ import annotations

from typing import Protocol

from rlhf_cli.data.token_batches import TokenSequence


class RolloutEngine(Protocol):
    """Anything that answers prompts with the policy's current weights."""

    def sample(self, prompts: list[tuple[int, ...]], keys: list[str], greedy: bool = False) -> list[TokenSequence]:
        """Return one response per prompt, in their order, its end token included where it came in time.

        keys: one text per prompt that seeds its draws; greedy takes the likeliest token instead. All ranks together;
        how many prompts each has, and how long it decodes, may differ.
        """
