"""Generate responses with the policy itself, with its weights gathered once per rollout."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerBase

from rlhf_cli.algo.sampling import draw
from rlhf_cli.config.sections import RolloutConfig
from rlhf_cli.data.token_batches import EndTokens, Size, SizedRow, TokenSequence, micro_batches
from rlhf_cli.engine import distributed
from rlhf_cli.engine.base import Engine
from rlhf_cli.models.heads import ResponseLM
from rlhf_cli.models.kernels import decoding_kernels, uncompiled
from rlhf_cli.rollout.kv_cache import preallocated_cache
from rlhf_cli.system.watchdog import PROGRESS

# Steps between checks for finished rows. A check makes a GPU wait, but not a CPU.
_CHECK_EVERY = {"cpu": 1}
_CHECK_EVERY_ON_GPU = 16
_MIN_DROPPED = 0.25  # of the rows: dropping rows copies the cache


class EmbeddedSampler:
    """Generates responses. The draws for a prompt depend only on its key, not on rank or micro-batch.

    Prompts of similar length form a batch. Each prompt is processed once, and finished rows leave
    the batch.
    """

    def __init__(self, policy: Engine, config: RolloutConfig, ends: EndTokens, device: torch.device) -> None:
        self.policy = policy
        self.config = config
        self.ends = ends
        self.device = device

    @torch.no_grad()
    def sample(self, prompts: list[tuple[int, ...]], keys: list[str], greedy: bool = False) -> list[TokenSequence]:
        """Return one response per prompt, including its end token if it came before max_new_tokens.

        keys: one text per prompt that seeds its random draws. greedy: always take the likeliest token.
        All ranks must call it together; their numbers of prompts and lengths may differ.
        """
        config = self.config
        sizes: list[SizedRow] = [Size(1, len(prompt) + config.max_new_tokens) for prompt in prompts]
        batches = micro_batches(sizes, config.micro_batch_size, config.micro_batch_tokens)
        found: dict[int, TokenSequence] = {}
        with self.policy.gathered(config.gather) as module:
            model = cast(ResponseLM, module)
            model.eval()  # in training mode, gradient checkpointing disables the key-value cache
            most_rows = max(map(len, batches), default=1)
            if not config.gather:  # all ranks then run every forward pass together
                batches = [batch for batch, _ in distributed.pad_to_same_count(batches)]
            kernels = decoding_kernels(model.model, most_rows) if config.gather else uncompiled(model.model)
            try:
                with kernels:
                    for indices in batches:
                        PROGRESS.tick()
                        uniform = None if greedy else self._uniforms([keys[index] for index in indices])
                        responses = self._decode(model, [prompts[index] for index in indices], uniform)
                        for index, response in zip(indices, responses, strict=True):
                            found[index] = TokenSequence(prompts[index], self.ends.cut(response))
            finally:
                model.train()
        return [found[index] for index in range(len(prompts))]

    def _uniforms(self, keys: list[str]) -> Tensor:
        """Return the random numbers that select each row's tokens, [B, T]."""
        return torch.stack([uniforms(key, self.config.max_new_tokens) for key in keys]).to(self.device)

    def _decode(self, model: ResponseLM, prompts: list[tuple[int, ...]], uniform: Tensor | None) -> list[list[int]]:
        """Return max_new_tokens tokens per prompt; those after the first end token are arbitrary."""
        rows = _DecodingRows.of(prompts, self.config.max_new_tokens, self.ends.pad_id, self.device)
        cache = preallocated_cache(model.model, rows.mask.shape[1])
        end_ids = torch.tensor(sorted(self.ends.ids), device=self.device)
        tokens = torch.full((len(prompts), self.config.max_new_tokens), self.ends.pad_id, device=self.device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        check_every = _CHECK_EVERY.get(self.device.type, _CHECK_EVERY_ON_GPU)
        last = self.config.max_new_tokens - 1
        for step in range(last + 1):
            logits = rows.logits(model, cache, step)
            if uniform is None:
                drawn = logits.argmax(dim=-1)
            else:
                drawn = draw(logits, uniform[rows.active, step], self.config.temperature, self.config.top_p)
            tokens[rows.active, step] = drawn
            ended[rows.active] |= torch.isin(drawn, end_ids)
            rows.append(drawn)
            if step < last and (step + 1) % check_every == 0 and self._all_ended(rows, cache, ended):
                break
        return tokens.tolist()

    def _all_ended(self, rows: _DecodingRows, cache: DynamicCache, ended: Tensor) -> bool:
        """Drop finished rows; return whether none is left, on all ranks if these decode together."""
        unfinished = (~ended[rows.active]).nonzero().flatten()
        num_unfinished, num_rows = len(unfinished), len(rows.active)
        if num_unfinished == 0:
            return self.config.gather or not distributed.any_rank(False)
        if not self.config.gather:
            distributed.any_rank(True)
        if num_rows - num_unfinished >= _MIN_DROPPED * num_rows:
            rows.keep(unfinished)
            cache.batch_select_indices(unfinished)
        return False


@dataclass
class _DecodingRows:
    """The unfinished rows of a batch. Prompts are padded on the left to P, the length of the longest."""

    next_ids: Tensor  # [B, P] in the first step, then [B, 1]
    positions: Tensor  # of next_ids, from 0 on a row's first real token
    mask: Tensor  # [B, P + T] 1 on real tokens, including future ones
    is_padded: bool
    active: Tensor  # [B] their indices in the batch
    num_prompt: int  # P

    @staticmethod
    def of(prompts: list[tuple[int, ...]], num_new: int, pad_id: int, device: torch.device) -> _DecodingRows:
        longest = max(map(len, prompts))
        ids = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * (len(prompt) + num_new) for prompt in prompts]
        real = torch.tensor(mask, device=device)
        return _DecodingRows(
            next_ids=torch.tensor(ids, device=device),
            positions=(real.cumsum(dim=1) - 1).clamp(min=0)[:, :longest],
            mask=real,
            is_padded=min(map(len, prompts)) < longest,
            active=torch.arange(len(prompts), device=device),
            num_prompt=longest,
        )

    def logits(self, model: ResponseLM, cache: DynamicCache, step: int) -> Tensor:
        """Process next_ids; return the logits [B, V] of the following token."""
        mask = self.mask[:, : self.num_prompt + step] if self.is_padded else None
        return model.next_logits(self.next_ids, mask, self.positions, cache)

    def append(self, tokens: Tensor) -> None:
        """Continue with one new token per row [B]."""
        self.next_ids, self.positions = tokens[:, None], self.positions[:, -1:] + 1

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self.next_ids, self.positions = self.next_ids[rows], self.positions[rows]
        self.mask, self.active = self.mask[rows], self.active[rows]


def uniforms(key: str, size: int) -> Tensor:
    """Return `size` random numbers in [0, 1), float64, that depend only on the key."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def end_token_ids(tokenizer: PreTrainedTokenizerBase, config: GenerationConfig | None) -> frozenset[int]:
    """Return the ids that end a response: the tokenizer's EOS and those of the generation config."""
    more = getattr(config, "eos_token_id", None)
    listed = more if isinstance(more, list) else [more]
    return frozenset({tokenizer.eos_token_id, *(token for token in listed if token is not None)})
