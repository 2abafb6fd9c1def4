"""Scores from a classifier that reads texts with a tokenizer and a template of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_cli.config.errors import require
from rlhf_cli.config.sections import DataConfig, ModelConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.token_batches import TokenSequence, chunks, collate
from rlhf_cli.engine.base import FrozenEngine
from rlhf_cli.models.heads import PairScorer, TokenScorer
from rlhf_cli.models.load_models import is_encoder, load_pair_classifier, load_sequence_classifier, positions
from rlhf_cli.models.load_tokenizer import load_pair_tokenizer, load_tokenizer
from rlhf_cli.rewards.source import Exchange


class DecoderReader:
    """Reads the rendered conversation, and the score at its last token.

    longest: positions of the model, None without a limit; a longer conversation loses its beginning.
    """

    def __init__(
        self, engine: FrozenEngine, renderer: Renderer, whole_turn: bool, longest: int | None, device: torch.device
    ) -> None:
        self.engine = engine
        self.renderer = renderer
        self.whole_turn = whole_turn
        self.longest = longest
        self.device = device

    def __call__(self, exchanges: Sequence[Exchange]) -> Tensor:
        """Return one float32 score an exchange [B], from one forward pass; all ranks together."""
        rows = [TokenSequence((), self._ids(exchange)[-(self.longest or 0) :]) for exchange in exchanges]
        batch = collate(rows, pad_id=0, device=self.device)  # masks hide it
        per_token, _ = self.engine(batch.input_ids, packing=batch.packing)
        return batch.at_last_token(per_token)

    def num_tokens(self, exchange: Exchange) -> int:
        """Return the tokens of an exchange, before anything is cut off."""
        return len(self._ids(exchange))

    def _ids(self, exchange: Exchange) -> tuple[int, ...]:
        if self.whole_turn:
            return self.renderer.whole_ids(exchange.messages, exchange.response)
        return self.renderer.sequence(exchange.messages, exchange.response).ids


class EncoderReader:
    """Reads prompt and response as a pair of texts, as classifiers with encoders (BERT, DeBERTa, ...) are trained.

    The prompt is the text of its messages, with empty lines between them; of a pair that is too long for the model
    the longer text loses its end.
    """

    def __init__(
        self, engine: FrozenEngine, tokenizer: PreTrainedTokenizerBase, longest: int | None, device: torch.device
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.longest = longest
        self.device = device

    def __call__(self, exchanges: Sequence[Exchange]) -> Tensor:
        """Return one float32 score an exchange [B], from one forward pass; all ranks together."""
        cut = {} if self.longest is None else {"truncation": "longest_first", "max_length": self.longest}
        pairs = [self._prompt(exchange) for exchange in exchanges], [exchange.response for exchange in exchanges]
        inputs = self.tokenizer(*pairs, padding=True, return_tensors="pt", **cut)
        scores: Tensor = self.engine(**{name: tensor.to(self.device) for name, tensor in inputs.items()})[0]
        return scores[:, 0]

    def num_tokens(self, exchange: Exchange) -> int:
        """Return the tokens of an exchange, before anything is cut off."""
        return len(self.tokenizer(self._prompt(exchange), exchange.response)["input_ids"])

    @staticmethod
    def _prompt(exchange: Exchange) -> str:
        return "\n\n".join(message["content"] for message in exchange.messages)


Reader = DecoderReader | EncoderReader


def load_reader(
    options: ModelConfig,
    key: str,
    data: DataConfig,
    whole_turn: bool,
    wrap: Callable[[nn.Module], FrozenEngine],
    device: torch.device,
) -> Reader:
    """Load a classifier with its tokenizer; raise InputError for another model.

    key: the section of its options, for messages. data: how conversations are rendered. wrap: puts the model into an
    engine; device: where that wants what is read.
    """
    if is_encoder(options, key):
        require(not whole_turn, key, "an encoder", "a decoder with whole_turn, which an encoder does not read")
        model = load_pair_classifier(options, key)
        return EncoderReader(wrap(PairScorer(model)), load_pair_tokenizer(options, key), positions(model), device)
    tokenizer = load_tokenizer(options, key)
    model = load_sequence_classifier(options, key, tokenizer, seed=0, new_head=False)
    return DecoderReader(wrap(TokenScorer(model)), Renderer(tokenizer, data), whole_turn, positions(model), device)


class ClassifierSource:
    """A frozen classifier that is one of the sources of a run; all ranks ask it together, about as many responses."""

    def __init__(self, read: Reader, batch_size: int, gather: bool) -> None:
        self.read = read
        self.engine = read.engine
        self.batch_size = batch_size
        self.gather = gather

    @torch.no_grad()
    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Return one score an exchange; texts of like length are read together."""
        order = sorted(range(len(exchanges)), key=lambda place: self.read.num_tokens(exchanges[place]))
        found: dict[int, float] = {}
        with self.engine.gathered(self.gather):
            for places in chunks(order, self.batch_size):
                scores = self.read([exchanges[place] for place in places]).tolist()
                found |= zip(places, scores, strict=True)
        return [found[place] for place in range(len(exchanges))]
