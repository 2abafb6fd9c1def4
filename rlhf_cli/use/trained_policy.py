"""A trained policy that answers prompts, with the sampler of the trainer."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.algo.logprobs import token_logprobs
from rlhf_cli.algo.sampling import draw
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import RolloutConfig
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
from rlhf_cli.use.trained_runs import Trained


@dataclass(frozen=True)
class Answer:
    """One answer of a policy."""

    text: str
    tokens: TokenSequence
    ended: bool  # by an end token, rather than at max_new_tokens

    @property
    def num_tokens(self) -> int:
        """Return the prompt with the answer, its end token included."""
        return len(self.tokens.response_ids)


class Policy:
    """A causal language model with its tokenizer, the rendering of its run, and the way answers are drawn."""

    def __init__(self, found: Trained, rollout: RolloutConfig, device: torch.device, key: str = "policy") -> None:
        """Load the model; raise InputError for files that are none."""
        tokenizer = load_tokenizer(found.model, key)
        model = load_causal_lm(found.model, key, tokenizer, found.seed)
        self.name = found.name
        self.rollout = rollout
        self.device = device
        self.renderer = Renderer(tokenizer, found.data)
        ends = end_token_ids(tokenizer, model.generation_config) | {self.renderer.end_id}
        self.ends = EndTokens(ends, pad_id(tokenizer))
        self._longest = positions(model)
        self._packed = reads_packed(model)
        self._engine = PlainFrozen(ResponseLM(model), device)
        self._sampler = EmbeddedSampler(self._engine, rollout, self.ends, device)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the ids of a conversation up to an answer; raise InputError where no answer has room behind it."""
        ids = self.renderer.prompt_ids(list(messages))
        room = None if self._longest is None else self._longest - self.rollout.max_new_tokens
        if room is not None and len(ids) > room:
            raise InputError(
                f"{self.name} has {self._longest} positions: a prompt of {len(ids)} tokens leaves no room for an "
                f"answer of {self.rollout.max_new_tokens}; lower --max-new-tokens, or give a shorter prompt"
            )
        return ids

    def answer(self, prompts: Sequence[tuple[int, ...]], keys: Sequence[str], greedy: bool = False) -> list[Answer]:
        """Return one answer a prompt, in order; what is drawn for one depends on its key alone."""
        if not prompts:
            return []
        sequences = self._sampler.sample(list(prompts), list(keys), greedy)
        return [self._answer(sequence) for sequence in sequences]

    @torch.no_grad()
    def stream(self, prompt: tuple[int, ...], key: str, greedy: bool = False) -> Generator[int, None, None]:
        """Yield the tokens of one answer as they are drawn, its end token too: those that `answer` would draw."""
        config, device = self.rollout, self.device
        numbers = uniforms(key, config.max_new_tokens).to(device)
        model = self._engine.module
        assert isinstance(model, ResponseLM)
        cache = preallocated_cache(model.model, len(prompt) + config.max_new_tokens)
        ids = torch.tensor([prompt], device=device)
        places = torch.arange(len(prompt), device=device)[None]
        with decoding_kernels(model.model, 1):
            for step in range(config.max_new_tokens):
                logits = model.next_logits(ids, None, places, cache)
                drawn = (
                    logits.argmax(dim=-1)
                    if greedy
                    else draw(logits, numbers[step : step + 1], config.temperature, config.top_p)
                )
                token = int(drawn)
                yield token
                if token in self.ends.ids:
                    return
                ids, places = drawn[:, None], places[:, -1:] + 1

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[Tensor]:
        """Return the logprob of each response token, [its length] a sequence, at the temperature of the sampling."""
        rows = sized_rows([(sequence,) for sequence in sequences], self._packed)
        found: dict[int, Tensor] = {}
        for places in micro_batches(rows, self.rollout.micro_batch_size, None) if sequences else []:
            batch = collate([sequences[place] for place in places], self.ends.pad_id, self.device)
            logits = self._engine(batch.input_ids, **batch.before_response_tokens(), packing=batch.packing)
            values = token_logprobs(logits, batch.real_response_ids(), self.rollout.temperature)
            found |= zip(places, batch.per_response_token(values).cpu(), strict=True)
        return [found[place][: len(sequence.response_ids)] for place, sequence in enumerate(sequences)]

    def vocabulary(self) -> dict[str, int]:
        """Return the ids of all tokens: two policies can be compared token by token where these are the same."""
        found: dict[str, int] = self.renderer.tokenizer.get_vocab()
        return found

    def _answer(self, sequence: TokenSequence) -> Answer:
        return Answer(self.renderer.response_text(sequence.response_ids), sequence, self.ends.ended(sequence))


class Typist:
    """Text of tokens that come one by one: only whole characters are handed out."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._ids: list[int] = []
        self._shown = ""

    @property
    def text(self) -> str:
        """All text until now."""
        return self._renderer.response_text(tuple(self._ids))

    def add(self, token: int) -> str:
        """Take a token; return what can be shown now."""
        self._ids.append(token)
        text = self.text
        if text.endswith("\ufffd") or not text.startswith(self._shown):
            return ""
        return self._up_to(text)

    def rest(self) -> str:
        """Return what was held back."""
        text = self.text
        return self._up_to(text) if text.startswith(self._shown) else ""

    def _up_to(self, text: str) -> str:
        new, self._shown = text[len(self._shown) :], text
        return new
