"""Load Hugging Face models from a Hub id, a folder, a GGUF file, or with random weights."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_path
from rlhf_cli.config.sections import ModelConfig
from rlhf_cli.models.heads import Float32Head
from rlhf_cli.models.hub import input_errors, pretrained_options
from rlhf_cli.models.kernels import select_kernels
from rlhf_cli.models.load_tokenizer import load_tokenizer, response_ends
from rlhf_cli.models.validate import (
    HEAD,
    check_config_json,
    check_folder,
    check_loaded,
    check_one_label,
    check_token_ids,
    check_tokenizer,
)

_PADDED_POSITIONS = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl")  # positions start after the pad id


def load_config(config: ModelConfig, key: str) -> PreTrainedConfig:
    """Return the transformers config of a model without its weights; raise InputError if there is none."""
    if config.from_config is not None:
        with input_errors(f"{key}.from_config"):
            return _random_config(config, key, load_tokenizer(config, key))
    assert config.path is not None  # ModelConfig.check
    path = resolve_path(config.path, f"{key}.path")
    check_config_json(Path(path), f"{key}.path={config.path}")
    with input_errors(f"{key}.path={config.path}: cannot read its config"):
        return AutoConfig.from_pretrained(**pretrained_options(path, config))


def load_causal_lm(config: ModelConfig, key: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Return a causal language model on the CPU, without dropout.

    seed: of the random weights of `from_config`. Raises InputError for files of another kind.
    """
    if config.from_config is not None:
        with torch.random.fork_rng(devices=[]), input_errors(f"{key}.from_config"):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(
                _random_config(config, key, tokenizer), dtype=torch_dtype(config), **_attention(config)
            )
    else:
        model, missing = _from_pretrained(AutoModelForCausalLM, config, key)
        _refuse_missing(missing, config, key)
    rows = model.get_input_embeddings().weight.shape[0]
    check_token_ids(model.generation_config.to_dict(), rows, f"{key}: generation_config.json")
    _make_savable(model.generation_config)
    return _prepared(model, config, key, tokenizer)


def load_sequence_classifier(
    config: ModelConfig, key: str, tokenizer: PreTrainedTokenizerBase, seed: int, new_head: bool
) -> PreTrainedModel:
    """Return a one-label sequence classifier on the CPU, without dropout; its head is `model.score`.

    new_head: if the weights have no head, initialise one from N(0, 1/(d+1)) (arXiv:2009.01325) with
    `seed`. Otherwise the weights must be a trained reward model: transformers would silently
    initialise a missing head at random, so it is an InputError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.from_config is not None:
            with input_errors(f"{key}.from_config"):
                model = AutoModelForSequenceClassification.from_config(
                    _random_config(config, key, tokenizer, num_labels=1),
                    dtype=torch_dtype(config),
                    **_attention(config),
                )
            missing = [HEAD] if new_head else []
        elif config.path is not None and config.path.endswith(".gguf"):
            causal, missing = _from_pretrained(AutoModelForCausalLM, config, key)
            model, missing = _classifier_around(causal), [HEAD, *missing]
        else:
            if not new_head:
                check_one_label(_read_config_json(config, key), f"{key}.path={config.path}")
            model, missing = _from_pretrained(AutoModelForSequenceClassification, config, key, num_labels=1)
        _refuse_missing([name for name in missing if not (new_head and name == HEAD)], config, key)
        _check_head(model, key)
        if HEAD in missing:
            torch.nn.init.normal_(model.score.weight, std=(model.score.in_features + 1) ** -0.5)
    model.score = Float32Head(model.score)
    pad = tokenizer.pad_token_id
    model.config.pad_token_id = None if pad in response_ends(tokenizer) else pad
    return _prepared(model, config, key, tokenizer)


def is_encoder(config: ModelConfig, key: str) -> bool:
    """Return whether a classifier has an encoder, which reads a pair of texts, instead of a decoder."""
    if config.path is None or config.path.endswith(".gguf"):
        return False
    options = copy.deepcopy(load_config(config, key))
    with input_errors(f"{key}.path={config.path}: not a sequence classifier"), torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(options)
    return not isinstance(getattr(model, "score", None), torch.nn.Linear)


def load_pair_classifier(config: ModelConfig, key: str) -> PreTrainedModel:
    """Return a one-label classifier with an encoder, on the CPU, without dropout."""
    check_one_label(_read_config_json(config, key), f"{key}.path={config.path}")
    model, missing = _from_pretrained(AutoModelForSequenceClassification, config, key, num_labels=1)
    _refuse_missing(missing, config, key)
    switch_dropout_off(model)
    model.eval()
    return model


def check_length(model: PreTrainedModel, longest: int, key: str, option: str) -> None:
    """Raise InputError if the model has fewer than `longest` positions; option: what the user can lower."""
    most = positions(model)
    if most is not None and longest > most:
        raise InputError(f"{key} has {most} positions, but the longest sequence may have {longest}; lower {option}")


def positions(model: PreTrainedModel) -> int | None:
    """Return the maximum number of tokens of a sequence, None if unlimited."""
    config: Any = model.config
    found = getattr(config, "max_position_embeddings", None)
    if found is None:
        return None
    offset = (config.pad_token_id or 0) + 1 if config.model_type in _PADDED_POSITIONS else 0
    return int(found) - offset


def torch_dtype(config: ModelConfig) -> torch.dtype:
    dtype = getattr(torch, config.dtype.value)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _from_pretrained(
    auto_class: Any, config: ModelConfig, key: str, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load weights; return the model and the names of missing tensors."""
    assert config.path is not None
    where, path = f"{key}.path={config.path}", resolve_path(config.path, f"{key}.path")
    if path.endswith(".gguf"):
        options["quantization_config"] = GgufConfig(dequantize=True)
    else:
        given = _read_config_json(config, key)
        check_token_ids(given, given.get("vocab_size"), f"{where}: config.json")
        if Path(path).is_dir():
            check_folder(Path(path), where)
        options |= {"use_safetensors": True, "ignore_mismatched_sizes": True}  # check_loaded reports them
    options |= {"dtype": torch_dtype(config), "output_loading_info": True}
    with input_errors(f"{where}: cannot load the weights"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = auto_class.from_pretrained(**options, **_attention(config), **pretrained_options(path, config))
    check_loaded(model, info, where)
    return model, sorted(info["missing_keys"])


def _read_config_json(config: ModelConfig, key: str) -> dict[str, Any]:
    """Return config.json without the defaults of transformers."""
    assert config.path is not None
    path = resolve_path(config.path, f"{key}.path")
    check_config_json(Path(path), f"{key}.path={config.path}")
    with input_errors(f"{key}.path={config.path}: cannot read config.json"):
        given: dict[str, Any] = PreTrainedConfig.get_config_dict(**pretrained_options(path, config))[0]
    return given


def _refuse_missing(missing: list[str], config: ModelConfig, key: str) -> None:
    """Raise InputError for missing tensors, which transformers silently initialises at random."""
    if missing:
        names = ", ".join(missing[:4])
        raise InputError(f"{key}.path={config.path}: {len(missing)} tensors missing: {names}")


def _check_head(model: PreTrainedModel, key: str) -> None:
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.out_features != 1:
        got = "no `score` layer" if head is None else f"{getattr(head, 'out_features', '?')} labels"
        raise InputError(
            f"{key} must be a decoder-only classifier with one label, got {type(model).__name__} with {got}"
        )


def _classifier_around(causal: PreTrainedModel) -> PreTrainedModel:
    """Return a sequence classifier with the backbone of a causal model."""
    causal.config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(causal.config, dtype=causal.dtype)
    model.base_model.load_state_dict(causal.base_model.state_dict())
    return model


def _random_config(config: ModelConfig, key: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Any:
    assert config.from_config is not None
    keys = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **config.from_config,
        **options,
    }
    check_token_ids(keys, keys["vocab_size"], f"{key}.from_config")
    return AutoConfig.for_model(**keys)


def _prepared(
    model: PreTrainedModel, config: ModelConfig, key: str, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    rows = model.get_input_embeddings().weight.shape[0]
    check_tokenizer(tokenizer, rows, key)
    check_token_ids(model.config.to_dict(), rows, key)
    model.exported_config = copy.deepcopy(model.config)  # with its dropout rates
    switch_dropout_off(model)
    select_kernels(model, config, key)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _make_savable(generation: GenerationConfig) -> None:
    """Fix a config that transformers (5.19) loads but cannot save: sampling settings without do_sample."""
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True


def switch_dropout_off(model: PreTrainedModel) -> None:
    """Set every dropout rate to 0: ratios and KL must not depend on noise. Train mode stays usable."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # attention layers copy their rate from the config
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    for name, value in model.config.to_dict().items():
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
            setattr(model.config, name, 0.0)


def _attention(config: ModelConfig) -> dict[str, str]:
    return {} if config.attn_implementation is None else {"attn_implementation": config.attn_implementation}
