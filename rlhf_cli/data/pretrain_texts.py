"""Plain text to blocks of tokens, for the language-modelling loss that is added to PPO's."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.objectives import PretrainConfig
from rlhf_cli.config.paths import resolve_path
from rlhf_cli.data.token_batches import TokenSequence, chunks


def load_texts(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> list[TokenSequence]:
    """Split a UTF-8 text file into blocks of max_tokens; the first token of a block has no loss.

    The last block may be shorter. Raises InputError for a file that is not text, or has fewer than
    two tokens.
    """
    path = config.path
    assert path is not None
    try:
        text = Path(resolve_path(path, "pretrain.path")).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"pretrain.path={path}: not a readable UTF-8 text file: {error}") from error
    blocks = chunks(tokenizer(text)["input_ids"], config.max_tokens)
    sequences = [TokenSequence(tuple(block[:1]), tuple(block[1:])) for block in blocks if len(block) > 1]
    if not sequences:
        raise InputError(f"pretrain.path={path}: has fewer than two tokens")
    return sequences
