"""A trained reward model as a source of scores: text in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import DType
from rlhf_cli.engine.plain import PlainFrozen
from rlhf_cli.rewards.classifier_source import ClassifierSource, load_text_classifier
from rlhf_cli.rewards.source import Exchange, describe, validated_scores
from rlhf_cli.use.trained_runs import Role, Trained, find, with_options

_DEVICES = ("cpu", "cuda", "mps", "xpu")  # torch names many more, `meta` among them, which hold or compute nothing


class RewardScorer:
    """A one-label classifier with its own tokenizer, reading what it was trained to read. It is a `Source`."""

    def __init__(self, found: Trained, device: torch.device, batch_size: int = 16, *, whole_turn: bool = False) -> None:
        """Load the model; raise InputError for files that are no reward model."""
        key = Role.reward_model.name
        self.name = str(found.model.path)
        self.classifier = load_text_classifier(
            found.model, key, found.data, whole_turn, lambda module: PlainFrozen(module, device), device
        )
        self._model = ClassifierSource(self.classifier, batch_size, gather=True)

    @staticmethod
    def load(
        path: str,
        device: str | None = None,
        dtype: DType | None = None,
        *,
        system_prompt: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int = 16,
        whole_turn: bool = False,
    ) -> RewardScorer:
        """Load a run folder such as outputs/demo_rm, its `final`, or any folder or Hub id of a one-label classifier.

        device: `cpu`, `cuda`, ...; unset: a GPU where there is one. dtype and system_prompt: unset, those of the run
        that trained it, or ModelConfig's and none; an empty system_prompt is none. batch_size: texts a forward pass.
        whole_turn: read what the template writes after an answer, too, as models of others often do.
        """
        found = with_options(find(path, Role.reward_model), system_prompt, dtype, trust_remote_code)
        return RewardScorer(found, device_of(device), batch_size, whole_turn=whole_turn)

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Return one score an exchange, in order; texts of like length are read together.

        Raises InputError for a conversation that the template refuses, and for one with more tokens than positions.
        """
        for exchange in exchanges:
            if (
                self.classifier.max_tokens is not None
                and self.classifier.num_tokens(exchange) > self.classifier.max_tokens
            ):
                what = f"more, in {describe(exchange)}"
                raise InputError(
                    f"{self.name} has {self.classifier.max_tokens} positions, wanted at most so many tokens, got {what}"
                )
        return validated_scores(self._model.score(exchanges), exchanges, self.name)

    def close(self) -> None:
        """There is nothing to give back."""


def device_of(name: str | None) -> torch.device:
    """Return the device of that name, or the one to use; raise InputError where there is none."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in _DEVICES or (device.type == "cpu" and device.index):
            raise InputError(f"--device {name}: nothing is computed there; wanted cpu, cuda or cuda:N")
        torch.zeros(1, device=device)
    except InputError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device
