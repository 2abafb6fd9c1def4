"""The embedded rollout engine: the policy itself generates, with its weights gathered once per rollout."""

from __future__ import annotations

import hashlib
from typing import cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_cli.algo.sampling import draw
from rlhf_cli.config.sections import RolloutConfig
from rlhf_cli.data.tokens import Sequence
from rlhf_cli.engine.watchdog import PROGRESS
from rlhf_cli.engine.zero import TrainEngine


class EmbeddedSampler:
    """Prompts in, responses out. What is drawn for a prompt depends on its key alone, not on rank or micro-batch."""

    def __init__(
        self,
        policy: TrainEngine,
        config: RolloutConfig,
        end_ids: frozenset[int],
        pad_id: int,
        device: torch.device,
    ) -> None:
        self.policy = policy
        self.config = config
        self.device = device
        self.end_ids = end_ids
        self.pad_id = pad_id

    @torch.no_grad()
    def sample(self, prompts: list[tuple[int, ...]], keys: list[str], greedy: bool = False) -> list[Sequence]:
        """Return one response per prompt, its EOS included where it came before max_new_tokens.

        keys: one text per prompt that seeds its draws; greedy takes the likeliest token instead. All ranks together,
        for the gather; how many prompts each has, and how long it decodes, may differ.
        """
        sequences: list[Sequence] = []
        with self.policy.gathered() as module:
            model = cast(PreTrainedModel, module.model)
            model.eval()  # gradient checkpointing, where it is on, would switch the KV cache off
            try:
                for start in range(0, len(prompts), self.config.micro_batch_size):
                    part = slice(start, start + self.config.micro_batch_size)
                    PROGRESS.tick()
                    sequences += self._generate(model, prompts[part], keys[part], greedy)
            finally:
                model.train()
        return sequences

    def ended(self, sequence: Sequence) -> bool:
        """Say whether a response ends in an end token, rather than at max_new_tokens."""
        return sequence.response_ids[-1] in self.end_ids

    def _generate(
        self, model: PreTrainedModel, prompts: list[tuple[int, ...]], keys: list[str], greedy: bool
    ) -> list[Sequence]:
        longest = max(map(len, prompts))
        padded = [[self.pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        processors = LogitsProcessorList([] if greedy else [InverseTransform(keys, self.config, longest, self.device)])
        own, model.generation_config = model.generation_config, self._generation_config()
        try:
            output = model.generate(
                input_ids=torch.tensor(padded, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                logits_processor=processors,
                synced_gpus=False,
            )
        finally:
            model.generation_config = own
        responses = output[:, longest:].tolist()
        return [Sequence(p, self._cut(r)) for p, r in zip(prompts, responses, strict=True)]

    def _generation_config(self) -> GenerationConfig:
        """Neutral settings: a Hub model's own top-k or repetition penalty would part samples from their logprobs."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=self.config.max_new_tokens,
            eos_token_id=sorted(self.end_ids),
            pad_token_id=self.pad_id,
        )

    def _cut(self, response: list[int]) -> tuple[int, ...]:
        """Drop what follows the first end token."""
        for place, token in enumerate(response):
            if token in self.end_ids:
                return tuple(response[: place + 1])
        return tuple(response)


class InverseTransform(LogitsProcessor):  # type: ignore[misc]  # mypy skips transformers
    """Makes greedy search sample: it leaves only the token that the row's next uniform number picks."""

    def __init__(self, keys: list[str], config: RolloutConfig, num_prompt: int, device: torch.device) -> None:
        self.uniforms = torch.stack([uniforms(key, config.max_new_tokens) for key in keys]).to(device)  # [B, T]
        self.temperature, self.top_p = config.temperature, config.top_p
        self.num_prompt = num_prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: [B, tokens so far]; scores: logits [B, V]; returns [B, V], 0 at the drawn token, else -inf."""
        step = input_ids.shape[1] - self.num_prompt
        drawn = draw(scores, self.uniforms[:, step], self.temperature, self.top_p)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)


def uniforms(key: str, size: int) -> Tensor:
    """Return `size` numbers in [0, 1), float64, that depend on the key alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def end_token_ids(tokenizer: PreTrainedTokenizerBase, config: GenerationConfig | None) -> frozenset[int]:
    """Return the ids that end a response: the tokenizer's EOS and those the model's generation config adds."""
    more = getattr(config, "eos_token_id", None)
    listed = more if isinstance(more, list) else [more]
    return frozenset({tokenizer.eos_token_id, *(token for token in listed if token is not None)})
