"""Hugging Face models and tokenizers from a ModelConfig: Hub id, local folder, GGUF file, or random weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_cli.config.paths import resolve_path
from rlhf_cli.config.schema import InputError, ModelConfig
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.heads import Float32Head


def load_tokenizer(config: ModelConfig, key: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, with a pad token that is not its EOS where it has one to spare.

    Raises InputError when there is none, or when it has no EOS token to end a response with.
    """
    if config.tokenizer == "bytes":
        return byte_tokenizer()
    source = config.tokenizer or config.path
    assert source is not None  # ModelConfig.check
    path = resolve_path(source, f"{key}.tokenizer" if config.tokenizer else f"{key}.path")
    try:
        tokenizer = AutoTokenizer.from_pretrained(*_location(path), **_hub_options(config), **_gguf_file(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: no tokenizer in {source}: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"{key}: the tokenizer of {source} has no EOS token, wanted one that ends a response")
    set_pad_token(tokenizer)
    return tokenizer


def set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token other than EOS: <|endoftext|>, <unk> or a reserved one, if it has such a token.

    Training does not need it (masks come from lengths), but an exported reward model does: transformers finds the
    last token as the last that is not the pad token, and would step over an EOS that is also the pad token.
    """
    eos = tokenizer.eos_token_id
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != eos:
        return
    tokenizer.pad_token = None
    candidates = [tokenizer.unk_token, *sorted(set(tokenizer.all_special_tokens) - {tokenizer.bos_token})]
    candidates += sorted(token.content for token in tokenizer.added_tokens_decoder.values() if "pad" in token.content)
    for token in candidates:
        if token is not None and tokenizer.convert_tokens_to_ids(token) not in (None, eos):
            tokenizer.pad_token = token
            return


def load_causal_lm(config: ModelConfig, key: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Return a causal language model on the CPU, dropout off.

    `seed` fixes the weights of a `from_config` model. Raises InputError for files that are not such a model.
    """
    if config.from_config is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(
                _random_config(config, key, tokenizer), dtype=torch_dtype(config), **_attention(config)
            )
    else:
        model = _from_pretrained(AutoModelForCausalLM, config, key, allowed_missing=())
    return _prepared(model, config, key, tokenizer)


def load_sequence_classifier(
    config: ModelConfig, key: str, tokenizer: PreTrainedTokenizerBase, seed: int, new_head: bool
) -> PreTrainedModel:
    """Return a one-label sequence classifier on the CPU, dropout off; its head is `model.score`.

    new_head: start the head from N(0, 1/(d+1)) with the given seed (arXiv:2009.01325); otherwise `path` must hold a
    trained reward model, and one without a head is refused, for transformers would fill it with noise in silence.
    """
    options: dict[str, Any] = {"num_labels": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.from_config is not None:
            model = AutoModelForSequenceClassification.from_config(
                _random_config(config, key, tokenizer, **options), dtype=torch_dtype(config), **_attention(config)
            )
        elif config.path is not None and config.path.endswith(".gguf"):
            if not new_head:
                raise InputError(f"{key}.path={config.path}: a GGUF file has no score head; wanted a reward model")
            model = _classifier_around(_from_pretrained(AutoModelForCausalLM, config, key, ()))
        else:
            allowed = ("score.weight",) if new_head else ()
            model = _from_pretrained(AutoModelForSequenceClassification, config, key, allowed, **options)
        head = getattr(model, "score", None)
        if not isinstance(head, torch.nn.Linear) or head.out_features != 1:
            got = "no `score` layer" if head is None else f"{getattr(head, 'out_features', '?')} labels"
            raise InputError(
                f"{key}: {type(model).__name__} has {got}, wanted a decoder-only classifier with one label"
            )
        if new_head:
            torch.nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
    model.score = Float32Head(head)
    pad = tokenizer.pad_token_id
    model.config.pad_token_id = None if pad == tokenizer.eos_token_id else pad
    return _prepared(model, config, key, tokenizer)


def torch_dtype(config: ModelConfig) -> torch.dtype:
    dtype = getattr(torch, config.dtype.value)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _from_pretrained(
    auto_class: Any, config: ModelConfig, key: str, allowed_missing: tuple[str, ...], **options: Any
) -> PreTrainedModel:
    assert config.path is not None
    path = resolve_path(config.path, f"{key}.path")
    gguf = _gguf_file(path)
    if gguf:
        options["quantization_config"] = GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, info = auto_class.from_pretrained(
                *_location(path), dtype=torch_dtype(config), output_loading_info=True,
                **_attention(config), **_hub_options(config), **gguf, **options,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{key}.path={config.path}: cannot load the weights: {_first_line(error)}") from error
    missing = sorted(name for name in info["missing_keys"] if name not in allowed_missing)
    wrong = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in info["mismatched_keys"])
    if missing or wrong:
        names = ", ".join((missing + wrong)[:4])
        raise InputError(f"{key}.path={config.path}: {len(missing)} tensors missing, {len(wrong)} misshapen: {names}")
    return model


def _classifier_around(causal: PreTrainedModel) -> PreTrainedModel:
    """Put a sequence classifier's head on the backbone of a causal model."""
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
    try:
        return AutoConfig.for_model(**keys)
    except (ValueError, TypeError) as error:
        raise InputError(f"{key}.from_config: {_first_line(error)}") from error


def _prepared(
    model: PreTrainedModel, config: ModelConfig, key: str, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(f"{key}: the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows")
    _switch_dropout_off(model)
    model.config.use_cache = True
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _switch_dropout_off(model: PreTrainedModel) -> None:
    """Set every dropout rate to 0: ratio and KL must compare weights, not noise (train mode stays usable)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # attention layers copy their rate from the config
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    for name, value in model.config.to_dict().items():
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
            setattr(model.config, name, 0.0)


def _location(path: str) -> tuple[str]:
    return (str(Path(path).parent) if path.endswith(".gguf") else path,)


def _gguf_file(path: str) -> dict[str, str]:
    return {"gguf_file": Path(path).name} if path.endswith(".gguf") else {}


def _hub_options(config: ModelConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    return options if config.revision is None else {**options, "revision": config.revision}


def _attention(config: ModelConfig) -> dict[str, str]:
    return {} if config.attn_implementation is None else {"attn_implementation": config.attn_implementation}


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
