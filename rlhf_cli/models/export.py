"""Export trained weights as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_cli.data.token_batches import EndTokens


def export_ends(model: PreTrainedModel, ends: EndTokens) -> None:
    """Make an exported policy stop at all end tokens it was sampled with, by its generation config.

    A pad token that is also an end token is replaced by the one that fills batches, or removed if
    that is an end token too.
    """
    generation = model.generation_config
    assert generation is not None
    listed = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    if not ends.ids <= set(listed):
        generation.eos_token_id = sorted(ends.ids)
    for config in (generation, model.exported_config):
        if config.pad_token_id in ends.ids:
            config.pad_token_id = None if ends.pad_id in ends.ids else ends.pad_id


def export(model: PreTrainedModel, state: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write config, weights (safetensors) and tokenizer to `folder`. Call it on rank 0 only.

    state: the full weights, named as in the wrapper of the model, with the prefix `model.`.
    """
    weights = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    empty = [name for name, tensor in weights.items() if tensor.numel() == 0]
    assert not empty, f"not gathered: {empty[:3]}"
    model.config = model.exported_config
    model.save_pretrained(folder, state_dict=weights, safe_serialization=True)
    tokenizer.save_pretrained(folder)
