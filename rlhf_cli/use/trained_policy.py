"""A trained policy that generates responses with the trainer's sampler."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from rlhf_cli.algo.logprobs import token_logprobs
from rlhf_cli.algo.sampling import draw
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DType
from rlhf_cli.data.chat_template import Message
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.token_batches import EndTokens, TokenSequence, collate, micro_batches, sized_rows
from rlhf_cli.engine.plain import PlainFrozen
from rlhf_cli.models.heads import ResponseLM
from rlhf_cli.models.kernels import decoding_kernels
from rlhf_cli.models.load_models import load_causal_lm, positions
from rlhf_cli.models.load_tokenizer import load_tokenizer, pad_id
from rlhf_cli.models.packed_forward import reads_packed
from rlhf_cli.rollout.embedded import EmbeddedSampler, end_token_ids, uniforms
from rlhf_cli.rollout.kv_cache import preallocated_cache
from rlhf_cli.use.cli_options import Loading
from rlhf_cli.use.trained_models import TrainedModel
from rlhf_cli.use.trained_reward_model import find_device


class TrainedPolicy:
    """A causal language model that renders and samples as in its run."""

    def __init__(self, trained: TrainedModel, loading: Loading, key: str = "policy") -> None:
        """Load the model; raise InputError if that fails. `trained.rollout`: how it samples.

        On a CPU the dtype is float32 unless `loading` has another one. In bfloat16 a prompt's
        logits depend slightly on its batch, which changes one of some dozens of samples.
        """
        self.device = find_device(loading.device)
        if self.device.type == "cpu" and loading.dtype is None:
            trained = trained.with_options(None, DType.float32, trust_remote_code=False)
        tokenizer = load_tokenizer(trained.model, key)
        model = load_causal_lm(trained.model, key, tokenizer, trained.seed)
        self.name = trained.name
        self.rollout = trained.rollout
        self.renderer = Renderer(tokenizer, trained.data)
        ends = end_token_ids(tokenizer, model.generation_config) | {self.renderer.end_id}
        self.ends = EndTokens(ends, pad_id(tokenizer))
        self._max_tokens = positions(model)
        self._packed = reads_packed(model)
        self._engine = PlainFrozen(ResponseLM(model), self.device)
        self._sampler = EmbeddedSampler(self._engine, self.rollout, self.ends, self.device)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the token ids of a conversation; raise InputError if it is too long."""
        ids = self.renderer.prompt_ids(list(messages))
        if self._max_tokens is not None and len(ids) + self.rollout.max_new_tokens > self._max_tokens:
            raise InputError(
                f"{self.name} has {self._max_tokens} positions: a prompt of {len(ids)} tokens is too long for a "
                f"response of {self.rollout.max_new_tokens}; lower --max-new-tokens, or shorten the prompt"
            )
        return ids

    def generate(
        self, prompts: Sequence[tuple[int, ...]], keys: Sequence[str], greedy: bool = False
    ) -> list[TokenSequence]:
        """Return a response for each prompt; it depends on its prompt and its key alone."""
        return self._sampler.sample(list(prompts), list(keys), greedy) if prompts else []

    @torch.no_grad()
    def stream(self, prompt: tuple[int, ...], key: str, greedy: bool = False) -> Generator[int, None, None]:
        """Yield the tokens of the response that `generate` returns, as they are sampled."""
        config, device = self.rollout, self.device
        numbers = uniforms(key, config.max_new_tokens).to(device)
        model = self._engine.module
        assert isinstance(model, ResponseLM)
        cache = preallocated_cache(model.model, len(prompt) + config.max_new_tokens)
        ids = torch.tensor([prompt], device=device)
        position_ids = torch.arange(len(prompt), device=device)[None]
        with decoding_kernels(model.model, 1):
            for step in range(config.max_new_tokens):
                logits = model.next_logits(ids, None, position_ids, cache)
                if greedy:
                    sampled = logits.argmax(dim=-1)
                else:
                    sampled = draw(logits, numbers[step : step + 1], config.temperature, config.top_p)
                token = int(sampled)
                yield token
                if token in self.ends.ids:
                    return
                ids, position_ids = sampled[:, None], position_ids[:, -1:] + 1

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[Tensor]:
        """Return the logprobs of each response's tokens [T] at the sampling temperature."""
        rows = sized_rows([(sequence,) for sequence in sequences], self._packed)
        found: dict[int, Tensor] = {}
        for indices in micro_batches(rows, self.rollout.micro_batch_size, None) if sequences else []:
            batch = collate([sequences[index] for index in indices], self.ends.pad_id, self.device)
            logits = self._engine(batch.input_ids, **batch.before_response_tokens(), packing=batch.packing)
            values = token_logprobs(logits, batch.real_response_ids(), self.rollout.temperature)
            found |= zip(indices, batch.per_response_token(values).cpu(), strict=True)
        return [found[index][: len(sequence.response_ids)] for index, sequence in enumerate(sequences)]

    def vocabulary(self) -> dict[str, int]:
        """Return the ids of all tokens; comparable policies have the same."""
        vocabulary: dict[str, int] = self.renderer.tokenizer.get_vocab()
        return vocabulary


class TokenDecoder:
    """Turns a stream of tokens into text; it holds back incomplete characters."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._ids: list[int] = []
        self._shown = ""

    @property
    def text(self) -> str:
        """The text of all tokens so far."""
        return self._renderer.response_text(tuple(self._ids))

    def add(self, token: int) -> str:
        """Add a token and return the text that can be shown now."""
        self._ids.append(token)
        return "" if self.text.endswith("\ufffd") else self.rest()

    def rest(self) -> str:
        """Return the text that was held back."""
        text = self.text
        if not text.startswith(self._shown):
            return ""
        new, self._shown = text[len(self._shown) :], text
        return new
