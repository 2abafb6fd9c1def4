"""Trained weights to plain Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export(model: PreTrainedModel, state: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write config, safetensors and tokenizer to `folder`; on rank 0 alone.

    state: the full weights under the names of the wrapper that held the model, each with the prefix `model.`.
    """
    weights = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    empty = [name for name, tensor in weights.items() if tensor.numel() == 0]
    assert not empty, f"not gathered: {empty[:3]}"
    model.config = model.exported_config
    model.save_pretrained(folder, state_dict=weights, safe_serialization=True)
    tokenizer.save_pretrained(folder)
