"""Scores from a classifier that has its own tokenizer and chat template."""

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


class DecoderClassifier:
    """Reads the rendered conversation; the score is the one at its last token.

    whole_turn: also read what the template writes after the response.
    max_tokens: the model's positions, None if unlimited; a longer conversation loses its beginning.
    """

    def __init__(
        self, engine: FrozenEngine, renderer: Renderer, whole_turn: bool, max_tokens: int | None, device: torch.device
    ) -> None:
        self.engine = engine
        self.renderer = renderer
        self.whole_turn = whole_turn
        self.max_tokens = max_tokens
        self.device = device

    def __call__(self, exchanges: Sequence[Exchange]) -> Tensor:
        """Return one score for each exchange, float32 [B]; all ranks call it together."""
        rows = [TokenSequence((), self._ids(exchange)[-(self.max_tokens or 0) :]) for exchange in exchanges]
        batch = collate(rows, pad_id=0, device=self.device)  # any id will do: padding is masked
        per_token, _ = self.engine(batch.input_ids, packing=batch.packing)
        return batch.at_last_token(per_token)

    def num_tokens(self, exchange: Exchange) -> int:
        """Return the tokens of an exchange before truncation."""
        return len(self._ids(exchange))

    def _ids(self, exchange: Exchange) -> tuple[int, ...]:
        if self.whole_turn:
            return self.renderer.conversation_ids(exchange.messages, exchange.response)
        return self.renderer.sequence(exchange.messages, exchange.response).ids


class EncoderClassifier:
    """Reads prompt and response as a pair of texts, as BERT, DeBERTa, ... are trained to.

    The prompt is the text of its messages, joined by empty lines. max_tokens: the model's
    positions, None if unlimited; the longer text of a longer pair loses its end.
    """

    def __init__(
        self, engine: FrozenEngine, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None, device: torch.device
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.device = device

    def __call__(self, exchanges: Sequence[Exchange]) -> Tensor:
        """Return one score for each exchange, float32 [B]; all ranks call it together."""
        truncation = {} if self.max_tokens is None else {"truncation": "longest_first", "max_length": self.max_tokens}
        pairs = [self._prompt(exchange) for exchange in exchanges], [exchange.response for exchange in exchanges]
        inputs = self.tokenizer(*pairs, padding=True, return_tensors="pt", **truncation)
        scores: Tensor = self.engine(**{name: tensor.to(self.device) for name, tensor in inputs.items()})[0]
        return scores[:, 0]

    def num_tokens(self, exchange: Exchange) -> int:
        """Return the tokens of an exchange before truncation."""
        return len(self.tokenizer(self._prompt(exchange), exchange.response)["input_ids"])

    @staticmethod
    def _prompt(exchange: Exchange) -> str:
        return "\n\n".join(message["content"] for message in exchange.messages)


TextClassifier = DecoderClassifier | EncoderClassifier


def load_text_classifier(
    options: ModelConfig,
    key: str,
    data: DataConfig,
    whole_turn: bool,
    wrap: Callable[[nn.Module], FrozenEngine],
    device: torch.device,
) -> TextClassifier:
    """Load a one-label classifier with its tokenizer; raise InputError if the model is not one.

    key: the section of its options, for messages. data: how conversations are rendered. wrap: puts
    the model into an engine. device: where the engine expects its inputs.
    """
    if is_encoder(options, key):
        require(not whole_turn, key, "an encoder", "a decoder with whole_turn, which an encoder does not read")
        model = load_pair_classifier(options, key)
        return EncoderClassifier(wrap(PairScorer(model)), load_pair_tokenizer(options, key), positions(model), device)
    tokenizer = load_tokenizer(options, key)
    model = load_sequence_classifier(options, key, tokenizer, seed=0, new_head=False)
    return DecoderClassifier(wrap(TokenScorer(model)), Renderer(tokenizer, data), whole_turn, positions(model), device)


class ClassifierSource:
    """A frozen classifier as a source. All ranks call it together, with equally many responses."""

    def __init__(self, classifier: TextClassifier, batch_size: int, gather: bool) -> None:
        """gather: hold all of a sharded model's weights while it scores."""
        self.classifier = classifier
        self.engine = classifier.engine
        self.batch_size = batch_size
        self.gather = gather

    @torch.no_grad()
    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Return one score for each exchange, in order. Texts of similar length share a batch."""
        by_length = sorted(range(len(exchanges)), key=lambda index: self.classifier.num_tokens(exchanges[index]))
        scores: dict[int, float] = {}
        with self.engine.gathered(self.gather):
            for indices in chunks(by_length, self.batch_size):
                batch = self.classifier([exchanges[index] for index in indices])
                scores |= zip(indices, batch.tolist(), strict=True)
        return [scores[index] for index in range(len(exchanges))]
