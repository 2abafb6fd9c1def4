"""What a user names for transformers to read: a Hub id, a folder or a GGUF file, and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.sections import ModelConfig
from rlhf_cli.system.text import one_line


@contextmanager
def outside_input(what: str) -> Iterator[None]:
    """Turn whatever transformers raises for a user's files and settings into one line.

    Its errors come from a dozen libraries (json, safetensors, tokenizers, hub, dataclasses): no list of them is
    complete.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {type(error).__name__}: {one_line(error, 300)}") from error


def location(path: str) -> tuple[str]:
    return (str(Path(path).parent) if path.endswith(".gguf") else path,)


def gguf_file(path: str) -> dict[str, str]:
    return {"gguf_file": Path(path).name} if path.endswith(".gguf") else {}


def hub_options(config: ModelConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    return options if config.revision is None else {**options, "revision": config.revision}
