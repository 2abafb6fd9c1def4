"""A trained reward model as a reward source."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf_cli.config.errors import InputError
from rlhf_cli.engine.plain import PlainFrozen
from rlhf_cli.rewards.classifier_source import ClassifierSource, load_text_classifier
from rlhf_cli.rewards.source import Exchange, describe, validated_scores
from rlhf_cli.use.trained_models import Role, TrainedModel

_DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")  # torch knows more, such as `meta`, that compute nothing


class TrainedRewardModel:
    """A `RewardSource`: a one-label classifier that renders texts as in its training."""

    def __init__(
        self, trained: TrainedModel, device: torch.device, batch_size: int = 16, *, whole_turn: bool = False
    ) -> None:
        """Load the model; raise InputError if it is not a reward model.

        batch_size: texts per forward pass. whole_turn: also read what the template writes after a
        response.
        """
        self.name = trained.name
        self.classifier = load_text_classifier(
            trained.model,
            Role.reward_model.name,
            trained.data,
            whole_turn,
            lambda module: PlainFrozen(module, device),
            device,
        )
        self._source = ClassifierSource(self.classifier, batch_size, gather=True)

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Return one score for each exchange, in order.

        Raises InputError for a conversation that is too long or that the template refuses.
        """
        limit = self.classifier.max_tokens
        for exchange in exchanges:
            if limit is not None and self.classifier.num_tokens(exchange) > limit:
                raise InputError(f"{self.name} has {limit} positions, got more tokens in {describe(exchange)}")
        return validated_scores(self._source.score(exchanges), exchanges, self.name)

    def close(self) -> None:
        """Do nothing: the model holds no connection."""


def find_device(name: str | None) -> torch.device:
    """Return the device of this name, or the default one; raise InputError if it is unusable."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in _DEVICE_TYPES or (device.type == "cpu" and device.index):
            raise InputError(f"--device {name}: it computes nothing; wanted cpu, cuda or cuda:N")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device
