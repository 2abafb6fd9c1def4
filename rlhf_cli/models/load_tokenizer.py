"""Load Hugging Face tokenizers and give them a chat template and a pad token."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_path
from rlhf_cli.config.sections import ModelConfig
from rlhf_cli.data.chat_template import end_of_turn, set_template
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.hub import input_errors, pretrained_options
from rlhf_cli.models.validate import check_config_json


def load_tokenizer(config: ModelConfig, key: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, with its chat template and, if possible, a separate pad token.

    Raises InputError for a missing tokenizer or EOS token, and for a template that cannot render.
    """
    tokenizer = load_pair_tokenizer(config, key)
    if tokenizer.eos_token_id is None:
        source = config.tokenizer or config.path
        raise InputError(f"{key}: the tokenizer of {source} has no EOS token; set one in its tokenizer_config.json")
    set_template(tokenizer, config.chat_template, f"{key}.chat_template")
    set_pad_token(tokenizer)
    return tokenizer


def load_pair_tokenizer(config: ModelConfig, key: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model unchanged; raise InputError if there is none."""
    if config.tokenizer == "bytes":
        return byte_tokenizer()
    source = config.tokenizer or config.path
    assert source is not None  # ModelConfig.check
    option = f"{key}.tokenizer" if config.tokenizer else f"{key}.path"
    path = resolve_path(source, option)
    check_config_json(Path(path), f"{option}={source}")
    with input_errors(f"{key}: no tokenizer in {source}"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**pretrained_options(path, config))
    return tokenizer


def response_ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return EOS and the token that the chat template writes after a turn."""
    return {tokenizer.eos_token_id, end_of_turn(tokenizer)}


def set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Replace a pad token that is missing or ends a response, if there is another candidate.

    Candidates are <unk> and tokens named after padding or <|endoftext|>. Training does not need a
    pad token, because masks come from lengths. An exported reward model does: transformers scores
    the last token that is not the pad token, and would skip an end token that is also the pad token.
    """
    unusable = {None, *response_ends(tokenizer)}
    if tokenizer.pad_token_id not in unusable:
        return
    names = sorted(token.content for token in tokenizer.added_tokens_decoder.values())
    spare = [name for name in names if "pad" in name.lower() or "endoftext" in name]
    for name in (tokenizer.unk_token, *spare):
        if name is not None and tokenizer.convert_tokens_to_ids(name) not in unusable:
            tokenizer.pad_token = name
            return


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that fills batches: the pad token, or else EOS, since masks hide it."""
    token: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return token
