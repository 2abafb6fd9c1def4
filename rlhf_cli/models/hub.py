"""Arguments and errors of transformers' `from_pretrained` for Hub ids, folders and GGUF files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import ModelConfig
from rlhf_cli.system.text import one_line


@contextmanager
def input_errors(what: str) -> Iterator[None]:
    """Turn any error of transformers about the user's files and settings into a one-line InputError.

    The errors come from many libraries (json, safetensors, tokenizers, huggingface_hub, ...), so
    they cannot be listed.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {type(error).__name__}: {one_line(error, 300)}") from error


def pretrained_options(path: str, config: ModelConfig) -> dict[str, Any]:
    """Return the keyword arguments of `from_pretrained` for a resolved path."""
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.revision is not None:
        options["revision"] = config.revision
    if path.endswith(".gguf"):
        return {"pretrained_model_name_or_path": str(Path(path).parent), "gguf_file": Path(path).name, **options}
    return {"pretrained_model_name_or_path": path, **options}
