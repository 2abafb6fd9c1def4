"""Send the messages of libraries to log.txt on rank 0, and nowhere on the other ranks."""

from __future__ import annotations

import logging
from pathlib import Path

import transformers


def quieten_libraries() -> None:
    """Remove the libraries' handlers and progress bars. `write_log` gets their warnings."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
    deepspeed = logging.getLogger("DeepSpeed")  # has handlers since the engine modules were imported (0.19.8)
    deepspeed.handlers.clear()
    deepspeed.propagate = True
    logging.captureWarnings(True)
    logging.getLogger().addHandler(logging.NullHandler())


def write_log(file: Path) -> None:
    """Write our messages, and the libraries' warnings, to a file."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("rlhf").setLevel(logging.INFO)
