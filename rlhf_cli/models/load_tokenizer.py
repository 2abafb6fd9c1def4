"""Hugging Face tokenizers from a ModelConfig, with what training asks of them."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_path
from rlhf_cli.config.sections import ModelConfig
from rlhf_cli.data.chat_template import end_of_turn, set_template
from rlhf_cli.models.byte_tokenizer import byte_tokenizer
from rlhf_cli.models.hub import gguf_file, hub_options, location, outside_input
from rlhf_cli.models.validate import check_config_json


def load_tokenizer(config: ModelConfig, key: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, with a pad token that is not its EOS where it has one to spare.

    Its chat template is what `chat_template` asks for. Raises InputError when there is none, when it has no EOS token
    to end a response with, or a template that renders nothing.
    """
    tokenizer = load_pair_tokenizer(config, key)
    if tokenizer.eos_token_id is None:
        source = config.tokenizer or config.path
        raise InputError(f"{key}: the tokenizer of {source} has no EOS token, wanted one that ends a response")
    set_template(tokenizer, config.chat_template, f"{key}.chat_template")
    set_pad_token(tokenizer)
    return tokenizer


def load_pair_tokenizer(config: ModelConfig, key: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model as it is; raise InputError when there is none."""
    if config.tokenizer == "bytes":
        return byte_tokenizer()
    source = config.tokenizer or config.path
    assert source is not None  # ModelConfig.check
    option = f"{key}.tokenizer" if config.tokenizer else f"{key}.path"
    path = resolve_path(source, option)
    check_config_json(Path(path), f"{option}={source}")
    with outside_input(f"{key}: no tokenizer in {source}"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            *location(path), **hub_options(config), **gguf_file(path)
        )
    return tokenizer


def set_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Where pad ends a response or is missing, take <unk>, or a token named after padding or <|endoftext|>.

    Training does not need it (masks come from lengths), but an exported reward model does: transformers finds the
    last token as the last that is not the pad token, and would step over an end token that is also the pad token.
    """
    taken = (None, tokenizer.eos_token_id, end_of_turn(tokenizer))
    if tokenizer.pad_token_id not in taken:
        return
    names = sorted(token.content for token in tokenizer.added_tokens_decoder.values())
    spare = [name for name in names if "pad" in name.lower() or "endoftext" in name]
    for name in (tokenizer.unk_token, *spare):
        if name is not None and tokenizer.convert_tokens_to_ids(name) not in taken:
            tokenizer.pad_token = name
            return


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id to fill batches with; masks hide it, so EOS serves where there is no pad token."""
    token: int = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return token
