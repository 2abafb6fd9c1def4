"""Answers to held-out prompts before and after training, and what they say when paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from rlhf_cli.config.schema import TrainPPOConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.data.tokens import EndTokens, chunks, flatten
from rlhf_cli.engine import distributed
from rlhf_cli.report.intervals import Interval, bootstrap_mean
from rlhf_cli.rewards.reward_model import RewardModel
from rlhf_cli.rollout import RolloutEngine


@dataclass(frozen=True)
class Answer:
    """One answer of the policy to a held-out prompt; a line of samples.jsonl."""

    stage: str  # before or after
    mode: str  # greedy or sampled
    prompt: str
    response: str
    score: float
    num_tokens: int
    ended: bool


class AnswerBook:
    """Asks the policy the same held-out prompts again and again; sampled answers draw the same numbers each time."""

    def __init__(
        self,
        prompts: list[Prompt],
        sampler: RolloutEngine,
        ends: EndTokens,
        reward_model: RewardModel,
        renderer: Renderer,
        config: TrainPPOConfig,
    ) -> None:
        self.prompts = prompts
        self.sampler = sampler
        self.ends = ends
        self.reward_model = reward_model
        self.renderer = renderer
        self.config = config

    def ask(self, stage: str) -> list[Answer]:
        """Return greedy and sampled answers to every prompt, the same list on every rank; all ranks together."""
        return [answer for mode in ("greedy", "sampled") for answer in self._ask(stage, mode)] if self.prompts else []

    def _ask(self, stage: str, mode: str) -> list[Answer]:
        # every rank makes the same number of forward passes
        mine = distributed.share(distributed.pad_to_ranks(list(range(len(self.prompts)))))
        keys = [f"{self.config.run.seed}/held-out/{place}" for place in mine]
        sequences = self.sampler.sample([self.prompts[place].ids for place in mine], keys, greedy=mode == "greedy")
        scores: list[float] = []
        with self.reward_model.engine.gathered(self.config.rollout.gather):
            for part in chunks(sequences, self.config.rollout.micro_batch_size):
                scores += self.reward_model.score(part).tolist()
        answers = [
            Answer(
                stage=stage,
                mode=mode,
                prompt=self.prompts[place].text,
                response=self.renderer.response_text(sequence.response_ids),
                score=score,
                num_tokens=len(sequence.response_ids),
                ended=self.ends.ended(sequence),
            )
            for place, sequence, score in zip(mine, sequences, scores, strict=True)
        ]
        return flatten(distributed.gather_all(answers))[: len(self.prompts)]


def compare(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Return per mode the mean scores, their paired difference with its 95 % interval, lengths and EOS rates."""
    figures = {}
    for mode in ("greedy", "sampled"):
        first, last = ([answer for answer in answers if answer.mode == mode] for answers in (before, after))
        if not first:
            continue
        gain: Interval = bootstrap_mean([b.score - a.score for a, b in zip(first, last, strict=True)])
        figures[mode] = {
            "num_prompts": len(first),
            "score_before": _mean([answer.score for answer in first]),
            "score_after": _mean([answer.score for answer in last]),
            **{f"difference_{name}": value for name, value in asdict(gain).items()},
            "response_length_before": _mean([answer.num_tokens for answer in first]),
            "response_length_after": _mean([answer.num_tokens for answer in last]),
            "eos_rate_before": _mean([answer.ended for answer in first]),
            "eos_rate_after": _mean([answer.ended for answer in last]),
        }
    return figures


def _mean(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())
