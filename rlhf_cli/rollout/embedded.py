"""The embedded rollout engine: the policy itself generates, with its weights gathered once per rollout."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
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
from rlhf_cli.models.compile_layers import as_written
from rlhf_cli.models.cpu.decoding import decoding
from rlhf_cli.models.heads import ResponseLM
from rlhf_cli.rollout.kv_cache import growing_cache
from rlhf_cli.system.watchdog import PROGRESS

# Asking a GPU whether rows have ended makes it wait; a CPU has nothing to wait for.
_LOOK_EVERY = {"cpu": 1}
_LOOK_SELDOM = 16
_WORTH_DROPPING = 0.25  # of the rows: the cache is copied when rows leave


class EmbeddedSampler:
    """Prompts in, responses out. What is drawn for a prompt depends on its key alone, not on rank or micro-batch.

    Prompts of like length are answered together; each is read once, and rows that have ended leave the batch.
    """

    def __init__(self, policy: Engine, config: RolloutConfig, ends: EndTokens, device: torch.device) -> None:
        self.policy = policy
        self.config = config
        self.ends = ends
        self.device = device

    @torch.no_grad()
    def sample(self, prompts: list[tuple[int, ...]], keys: list[str], greedy: bool = False) -> list[TokenSequence]:
        """Return one response per prompt, its EOS included where it came before max_new_tokens.

        keys: one text per prompt that seeds its draws; greedy takes the likeliest token instead. All ranks together;
        how many prompts each has, and how long it decodes, may differ.
        """
        config = self.config
        sizes: list[SizedRow] = [Size(1, len(prompt) + config.max_new_tokens) for prompt in prompts]
        groups = micro_batches(sizes, config.micro_batch_size, config.micro_batch_tokens)
        found: dict[int, TokenSequence] = {}
        with self.policy.gathered(config.gather) as module:
            model = cast(ResponseLM, module)
            model.eval()  # gradient checkpointing, where it is on, would switch the KV cache off
            try:
                whole = decoding(model.model, max(map(len, groups))) if config.gather else nullcontext()
                with whole, as_written(model):
                    for places in (
                        groups if config.gather else [group for group, _ in distributed.pad_to_same_count(groups)]
                    ):
                        PROGRESS.tick()
                        uniform = None if greedy else self._uniforms([keys[place] for place in places])
                        responses = self._decode(model, [prompts[place] for place in places], uniform)
                        for place, response in zip(places, responses, strict=True):
                            found[place] = TokenSequence(prompts[place], self.ends.cut(response))
            finally:
                model.train()
        return [found[place] for place in range(len(prompts))]

    def _uniforms(self, keys: list[str]) -> Tensor:
        """Return the numbers that pick each row's tokens, [B, T]."""
        return torch.stack([uniforms(key, self.config.max_new_tokens) for key in keys]).to(self.device)

    def _decode(self, model: ResponseLM, prompts: list[tuple[int, ...]], uniform: Tensor | None) -> list[list[int]]:
        """Return max_new_tokens tokens for each prompt; what follows its first end token means nothing."""
        rows = _Rows.of(prompts, self.config.max_new_tokens, self.ends.pad_id, self.device)
        cache = growing_cache(model.model, rows.mask.shape[1])
        end_ids = torch.tensor(sorted(self.ends.ids), device=self.device)
        tokens = torch.full((len(prompts), self.config.max_new_tokens), self.ends.pad_id, device=self.device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        look_every = _LOOK_EVERY.get(self.device.type, _LOOK_SELDOM)
        last = self.config.max_new_tokens - 1
        for step in range(last + 1):
            logits = rows.logits(model, cache, step)
            if uniform is None:
                drawn = logits.argmax(dim=-1)
            else:
                drawn = draw(logits, uniform[rows.alive, step], self.config.temperature, self.config.top_p)
            tokens[rows.alive, step] = drawn
            ended[rows.alive] |= torch.isin(drawn, end_ids)
            rows.read_next(drawn)
            if step < last and (step + 1) % look_every == 0 and self._all_ended(rows, cache, ended):
                break
        return tokens.tolist()

    def _all_ended(self, rows: _Rows, cache: DynamicCache, ended: Tensor) -> bool:
        """Take rows that have ended out of the batch; say whether none is left, on any rank if they decode together."""
        going = (~ended[rows.alive]).nonzero().flatten()
        num_going, num_rows = len(going), len(rows.alive)
        if num_going == 0:
            return self.config.gather or not distributed.any_rank(False)
        if not self.config.gather:
            distributed.any_rank(True)
        if num_rows - num_going >= _WORTH_DROPPING * num_rows:
            rows.keep(going)
            cache.batch_select_indices(going)
        return False


@dataclass
class _Rows:
    """The rows of a batch that are still being decoded. P: the longest prompt; prompts are padded on the left."""

    next_ids: Tensor  # [B, P] in the first step, then [B, 1]
    positions: Tensor  # of next_ids; 0 on the first real token of a row, whatever its padding
    mask: Tensor  # [B, P + T] 1 on real tokens, those to come among them
    is_padded: bool
    alive: Tensor  # [B] their places in the batch
    num_prompt: int  # P

    @staticmethod
    def of(prompts: list[tuple[int, ...]], num_new: int, pad_id: int, device: torch.device) -> _Rows:
        longest = max(map(len, prompts))
        ids = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * (len(prompt) + num_new) for prompt in prompts]
        real = torch.tensor(mask, device=device)
        return _Rows(
            next_ids=torch.tensor(ids, device=device),
            positions=(real.cumsum(dim=1) - 1).clamp(min=0)[:, :longest],
            mask=real,
            is_padded=min(map(len, prompts)) < longest,
            alive=torch.arange(len(prompts), device=device),
            num_prompt=longest,
        )

    def logits(self, model: ResponseLM, cache: DynamicCache, step: int) -> Tensor:
        """Read next_ids; return the logits [B, V] of the token after them."""
        mask = self.mask[:, : self.num_prompt + step] if self.is_padded else None
        return model.next_logits(self.next_ids, mask, self.positions, cache)

    def read_next(self, tokens: Tensor) -> None:
        """Go on with one token a row [B]."""
        self.next_ids, self.positions = tokens[:, None], self.positions[:, -1:] + 1

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but some."""
        self.next_ids, self.positions = self.next_ids[rows], self.positions[rows]
        self.mask, self.alive = self.mask[rows], self.alive[rows]


def uniforms(key: str, size: int) -> Tensor:
    """Return `size` numbers in [0, 1), float64, that depend on the key alone."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def end_token_ids(tokenizer: PreTrainedTokenizerBase, config: GenerationConfig | None) -> frozenset[int]:
    """Return the ids that end a response: the tokenizer's EOS and those the model's generation config adds."""
    more = getattr(config, "eos_token_id", None)
    listed = more if isinstance(more, list) else [more]
    return frozenset({tokenizer.eos_token_id, *(token for token in listed if token is not None)})
