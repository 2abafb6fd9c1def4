"""The cache of tokenised rows: one file per source, options and tokenizer, reused by later runs.

Files are in `$XDG_CACHE_HOME/rlhf`, or `~/.cache/rlhf`; not below HF_HOME, which the Hub's tools
manage and which is often shared or read-only. Any file may be deleted at any time. The name of a
file is a SHA-256 of everything that decides its content. The file is an Arrow stream
(row_store.py), followed by a SHA-256 of its name and the stream.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from rlhf_cli.config.sections import DataConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.row_pipeline import SourceSummary
from rlhf_cli.data.row_store import DIGEST_BYTES, Example, IndexedRows, RowWriter, StoredRows
from rlhf_cli.system.durable_files import sync
from rlhf_cli.system.text import one_line

FORMAT = 3  # of the files; the code that makes token ids is hashed separately
_LIBRARIES = ("datasets", "jinja2", "tokenizers", "transformers")
_IRRELEVANT_OPTIONS = frozenset(  # of DataConfig; filters are part of the key anyway
    ("train", "train_split", "train_filter", "eval", "eval_split", "eval_filter", "eval_fraction", "cache")
)


@dataclass(frozen=True)
class LoadedRows(Generic[Example]):
    """The usable rows of one source."""

    rows: IndexedRows[Example]
    summary: SourceSummary


# Passes each row to the given function, and returns a summary
Convert = Callable[[Callable[[Example], None]], SourceSummary]


class RowCache(Generic[Example]):
    """The cached rows for one set of data options, one tokenizer and one kind of row."""

    def __init__(self, config: DataConfig, renderer: Renderer, kind: type[Example]) -> None:
        self.notes: list[str] = []  # why rows cannot be cached, one line each
        self.kind = kind
        self._folder: Path | None = None
        if not config.cache:
            return
        try:
            self._base_key = json.dumps([FORMAT, kind.__name__, _code(), *_rendering(renderer)])
            self._folder = folder()
        except _NotCacheableError as error:
            self.notes = [f"data.cache: not used, {error}"]

    def key(self, options: DataConfig, wanted: Mapping[str, Any], content: Callable[[], str | None]) -> str | None:
        """Return the name for the rows of a source; None where they cannot be cached."""
        found = None if self._folder is None else content()
        if found is None:
            return None
        everything = f"{self._base_key} {json.dumps([*_options(options), dict(wanted)])} {found}"
        return hashlib.sha256(everything.encode()).hexdigest()

    def read(self, key: str | None) -> LoadedRows[Example] | None:
        """Return the rows cached under a key; None where there are none or the file is damaged."""
        if key is None or self._folder is None:
            return None
        path = self._folder / f"{key}.rows"
        try:
            with path.open("rb") as file:
                if not _is_intact(file.fileno(), key):
                    return None
                rows = StoredRows(file.fileno(), self.kind, path)
        except OSError:
            return None
        return LoadedRows(rows, SourceSummary(**json.loads(rows.metadata[b"summary"])))

    def write(self, key: str | None, convert: Convert[Example], is_current: Callable[[], bool]) -> LoadedRows[Example]:
        """Convert the rows of a source, and cache them under a key.

        Without a key, or where the cache cannot be written (a note gives the reason), rows go to a
        temporary file. If that fails too, they stay in memory. `is_current`: whether the source is
        unchanged after the conversion; otherwise rows are not cached.
        """
        if key is not None and self._folder is not None:
            try:
                return self._write(self._folder, key, convert, is_current)
            except OSError as error:
                reason = one_line(error.strerror or error, 200)
                self.notes = [f"data.cache: cannot write {self._folder}: {reason}; rows are tokenised at every start"]
        try:
            return self._write(Path(tempfile.gettempdir()), None, convert, is_current)
        except OSError:
            rows: list[Example] = []
            return LoadedRows(rows, convert(rows.append))

    def _write(
        self, directory: Path, key: str | None, convert: Convert[Example], is_current: Callable[[], bool]
    ) -> LoadedRows[Example]:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=directory, prefix=".rlhf-", suffix=".tmp")
        path = None
        try:
            with open(descriptor, "w+b") as file:
                writer = RowWriter(file)
                summary = convert(writer.append)
                writer.finish({"summary": json.dumps(asdict(summary))})
                file.flush()
                if key is not None and is_current():
                    file.write(_digest(file.fileno(), key))
                    file.flush()
                    os.fsync(descriptor)
                    path = directory / f"{key}.rows"
                    os.replace(name, path)
                    sync(directory)
                return LoadedRows(StoredRows(descriptor, self.kind, path), summary)
        finally:
            Path(name).unlink(missing_ok=True)


class _NotCacheableError(Exception):
    """Why it cannot be known whether rows would give the same token ids again."""


def folder() -> Path:
    """Return the folder of all files; it need not exist."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # the XDG Base Directory Specification says to ignore relative paths
        return base / "rlhf"
    try:
        return Path.home() / ".cache/rlhf"
    except RuntimeError as error:
        raise _NotCacheableError("there is no home folder; set XDG_CACHE_HOME") from error


def _code() -> str:
    """Return a SHA-256 of the code that turns rows into token ids."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _options(config: DataConfig) -> list[Any]:
    options = {name: repr(value) for name, value in asdict(config).items() if name not in _IRRELEVANT_OPTIONS}
    return [options, [version(name) for name in _LIBRARIES]]


def _rendering(renderer: Renderer) -> list[Any]:
    """Return everything that decides which ids a text becomes; raise _NotCacheableError."""
    tokenizer: PreTrainedTokenizerBase = renderer.tokenizer
    kind, backend = type(tokenizer), getattr(tokenizer, "backend_tokenizer", None)
    if not kind.__module__.startswith("transformers.") or not isinstance(backend, Tokenizer):
        raise _NotCacheableError(f"this tokenizer ({kind.__name__}) runs code of its own, which may change")
    if renderer.use_template and "strftime_now" in json.dumps(tokenizer.chat_template):
        raise _NotCacheableError("the chat template contains the current time")
    backend.no_truncation()  # as every call does that does not ask for truncation or padding
    backend.no_padding()
    return [
        [kind.__name__, backend.to_str(), tokenizer.split_special_tokens],
        [tokenizer.special_tokens_map, tokenizer.eos_token_id],
        [tokenizer.chat_template, renderer.use_template, renderer.system_prompt],
    ]


def _digest(descriptor: int, key: str, size: int | None = None) -> bytes:
    """Return a SHA-256 of a key and the first `size` bytes of a file; None: all of them."""
    digest, position = hashlib.sha256(key.encode()), 0
    end = os.fstat(descriptor).st_size if size is None else size
    while position < end and (block := os.pread(descriptor, min(1 << 20, end - position), position)):
        digest.update(block)
        position += len(block)
    return digest.digest()


def _is_intact(descriptor: int, key: str) -> bool:
    size = os.fstat(descriptor).st_size - DIGEST_BYTES
    return size > 0 and os.pread(descriptor, DIGEST_BYTES, size) == _digest(descriptor, key, size)
