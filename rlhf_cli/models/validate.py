"""Check model files against their config, before and after transformers reads them.

Without an error, transformers (5.19) fills missing tensors with random numbers, ignores tensors it
has no place for, loads NaN, and uses one label where config.json has two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_cli.config.errors import InputError
from rlhf_cli.system.text import one_line, printable

HEAD = "score.weight"
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_INDEX = "model.safetensors.index.json"
_BUFFERS = re.compile(r"(inv_freq|masked_bias|causal_mask|position_ids|version|\b(attn|attention)\.bias)$")


def check_folder(folder: Path, where: str) -> None:
    """Raise InputError for missing or damaged files of a local model; reads only headers of weights."""
    check_config_json(folder, where)
    names = ["model.safetensors"]
    if not (folder / names[0]).exists():
        names = _shards(folder, where)
    for name in names:
        if not (folder / name).exists():
            raise InputError(f"{where}: {_INDEX} lists {name}, which is missing; copy or download it again")
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            reason = one_line(error, 300)
            raise InputError(f"{where}: {name} is damaged ({reason}); copy or download it again") from error


def check_config_json(folder: Path, where: str) -> None:
    """Raise InputError if a folder has a config.json that is not a JSON object."""
    if (folder / "config.json").exists():
        _read_object(folder / "config.json", where)


def _shards(folder: Path, where: str) -> list[str]:
    """Return the files with the weights that the index lists."""
    if (folder / _INDEX).exists():
        weights = _read_object(folder / _INDEX, where).get("weight_map")
        if not isinstance(weights, dict) or not weights:
            raise InputError(f"{where}: {_INDEX} has no weight_map; copy or download it again")
        return sorted({printable(str(file)) for file in weights.values()})
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"{where}: weights must be in safetensors, got {pickles[0]}, a pickle file, which may run code when read; "
            "convert it with AutoModelForCausalLM (a reward model: AutoModelForSequenceClassification)"
            f".from_pretrained('{folder}').save_pretrained('{folder}')"
        )
    raise InputError(f"{where}: the folder has no model.safetensors")


def _read_object(file: Path, where: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise InputError(f"{where}: {file.name} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{where}: {file.name} is damaged: wanted a JSON object, got {type(found).__name__}")
    return found


def check_one_label(config: Mapping[str, Any], where: str) -> None:
    """Raise InputError if config.json gives a reward model more than one label."""
    names = config.get("id2label")
    num = config.get("num_labels") or (len(names) if isinstance(names, dict) and names else 1)
    if num != 1:
        raise InputError(f"{where}: a reward model must have one label, got {num} in config.json")


def check_token_ids(config: Mapping[str, Any], vocab_size: object, where: str) -> None:
    """Raise InputError for a special token outside the vocabulary; old configs use -1 for none."""
    for name in _TOKEN_IDS:
        value = config.get(name)
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, int) and isinstance(vocab_size, int) and not -1 <= token < vocab_size:
                raise InputError(f"{where}: {name} must be below the vocabulary size {vocab_size}, got {token}")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, num_rows: int, where: str) -> None:
    """Raise InputError if the tokenizer has ids without a row in the embedding."""
    highest = max(tokenizer.get_vocab().values())
    if highest >= num_rows:
        raise InputError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens with ids up to {highest}, but the embedding has "
            f"{num_rows} rows; use the tokenizer of this model"
        )


def check_loaded(model: PreTrainedModel, info: Mapping[str, Any], where: str) -> None:
    """Raise InputError for tensors with a wrong shape or without a place, and for NaN or infinity.

    Buffers of old versions, and heads of other tasks, may be without a place.
    """
    for name, found, wanted in sorted(info["mismatched_keys"]):
        if name == HEAD:
            raise InputError(f"{where}: the head of a reward model must give {wanted[0]} score, got {found[0]}")
        shapes = f"{name} is {list(found)} in the files, {list(wanted)} in config.json"
        raise InputError(f"{where}: {len(info['mismatched_keys'])} tensors have a wrong shape: {shapes}")
    ours = {name for part in (model, model.base_model) for name, _ in part.named_children()}
    left_out = [
        name for name in sorted(info["unexpected_keys"]) if name.split(".")[0] in ours and not _BUFFERS.search(name)
    ]
    if left_out:
        listed = printable(", ".join(left_out[:4]))
        raise InputError(f"{where}: {len(left_out)} tensors do not belong to the model of config.json: {listed}")
    for name, weight in model.named_parameters():
        low, high = weight.detach().aminmax()
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise InputError(f"{where}: {name} contains NaN or infinity")
