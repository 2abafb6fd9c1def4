"""Where library messages go: log.txt on rank 0, nowhere on the others; the terminal is the reporter's."""

from __future__ import annotations

import logging
from pathlib import Path

import transformers


def quieten_libraries() -> None:
    """Take the libraries' own handlers and progress bars away; their warnings go where `write_log` says."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
    deepspeed = logging.getLogger("DeepSpeed")  # made when the engines' modules were imported (0.19.8)
    deepspeed.handlers.clear()
    deepspeed.propagate = True
    logging.captureWarnings(True)
    logging.getLogger().addHandler(logging.NullHandler())


def write_log(file: Path) -> None:
    """Send our messages, and the libraries' warnings, to a file."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("rlhf").setLevel(logging.INFO)
