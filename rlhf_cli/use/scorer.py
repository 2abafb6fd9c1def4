"""A trained reward model as a source of scores: text in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DType
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.tokens import EndTokens, micro_batches, rooms
from rlhf_cli.data.tokens import Sequence as Tokens
from rlhf_cli.engine.plain import PlainFrozen
from rlhf_cli.models.heads import TokenScorer
from rlhf_cli.models.load import load_sequence_classifier, load_tokenizer, pad_id
from rlhf_cli.models.packed import reads_packed
from rlhf_cli.rewards.reward_model import RewardModel
from rlhf_cli.rewards.source import Exchange, checked_scores, shown
from rlhf_cli.use.runs import Role, Trained, find, with_options


class RewardScorer:
    """A one-label classifier with its own tokenizer, reading what it was trained to read. It is a `Source`."""

    def __init__(self, found: Trained, device: torch.device, batch_size: int = 16) -> None:
        """Load the model; raise InputError for files that are no reward model."""
        key = Role.reward_model.name
        tokenizer = load_tokenizer(found.model, key)
        model = load_sequence_classifier(found.model, key, tokenizer, seed=0, new_head=False)
        self.name = str(found.model.path)
        self.tokenizer = tokenizer
        self.renderer = Renderer(tokenizer, found.data)
        self.batch_size = batch_size
        self._longest: int | None = getattr(model.config, "max_position_embeddings", None)
        self._packed = reads_packed(model)
        ends = EndTokens(frozenset({tokenizer.eos_token_id}), pad_id(tokenizer))
        engine = PlainFrozen(TokenScorer(model), device)
        self._model = RewardModel(engine, tokenizer.eos_token_id, ends, device)

    @staticmethod
    def load(
        path: str,
        device: str | None = None,
        dtype: DType | None = None,
        *,
        system_prompt: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int = 16,
    ) -> RewardScorer:
        """Load a run folder such as outputs/demo_rm, its `final`, or any folder or Hub id of a one-label classifier.

        device: `cpu`, `cuda`, ...; unset: a GPU where there is one. dtype and system_prompt: unset, those of the run
        that trained it, or ModelConfig's and none; an empty system_prompt is none. batch_size: texts a forward pass.
        """
        found = with_options(find(path, Role.reward_model), system_prompt, dtype, trust_remote_code)
        return RewardScorer(found, device_of(device), batch_size)

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Return one score an exchange, in order; texts of like length are read together.

        Raises InputError for a conversation that the template refuses, and for one with more tokens than positions.
        """
        if not exchanges:
            return []
        texts = [self._tokens(exchange) for exchange in exchanges]
        rows = rooms([(text,) for text in texts], self._packed)
        scores = [0.0] * len(texts)
        for places in micro_batches(rows, self.batch_size, None):
            found = self._model.score([texts[place] for place in places]).tolist()
            for place, score in zip(places, found, strict=True):
                scores[place] = score
        return checked_scores(scores, exchanges, self.name)

    def close(self) -> None:
        """There is nothing to give back."""

    def _tokens(self, exchange: Exchange) -> Tokens:
        text = Tokens(self.renderer.prompt_ids(exchange.messages), self.renderer.response_ids(exchange.response))
        if self._longest is not None and len(text) > self._longest:
            what = shown(exchange)
            raise InputError(f"{self.name} has {self._longest} positions, wanted at most so many tokens, got {what}")
        return text


def device_of(name: str | None) -> torch.device:
    """Return the device of that name, or the one to use; raise InputError where there is none."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(f"device {name}: {str(error).splitlines()[0]}") from error
    return device
