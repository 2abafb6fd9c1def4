"""Token ids of a source, kept from one start to the next.

They lie in `$XDG_CACHE_HOME/rlhf`, or `~/.cache/rlhf`. Not below HF_HOME: that is laid out, listed and emptied by the
Hub's own tools, and often shared or read-only. Every file may be deleted at any time.

A file is named after a SHA-256 over all that decides what is in it. It holds a SHA-256 over that name and what
follows, and a safetensors file: the lists of ids of all examples, their lengths, and all else as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.metadata import version
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from safetensors.numpy import load, save
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from rlhf_cli.config.sections import DataConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.engine.files import sync
from rlhf_cli.report.text import one_line

FORMAT = 1  # of the files; what decides the ids themselves is the code of this folder, which counts too
Ids = tuple[int, ...]
_LIBRARIES = ("datasets", "jinja2", "tokenizers", "transformers")
_CHANGES_NO_ROW = ("train", "train_split", "eval", "eval_split", "eval_fraction", "cache")  # of DataConfig
_DIGEST_BYTES = 32


class Storable(Protocol):
    """An example that can be written down and read back."""

    def parts(self) -> tuple[list[Ids], list[Any]]:
        """Return its lists of ids, and the rest as JSON can hold it."""

    @classmethod
    def of_parts(cls, ids: list[Ids], rest: list[Any]) -> Self:
        """Return the example that has these parts."""


Example = TypeVar("Example", bound=Storable)


@dataclass(frozen=True)
class Loaded(Generic[Example]):
    """What one source gave."""

    examples: list[Example]
    dropped: dict[str, int]  # reason -> rows


class RowCache(Generic[Example]):
    """The files for one set of data options, one tokenizer and one kind of example."""

    def __init__(self, config: DataConfig, renderer: Renderer, kind: type[Example]) -> None:
        self.notes: list[str] = []  # why nothing can be kept, one line
        self._kind = kind
        self._decides: str | None = None
        if not config.cache:
            return
        try:
            self._folder = folder()
            self._decides = json.dumps([FORMAT, kind.__name__, _code(), *_options(config), _rendering(renderer)])
        except _UnknowableError as error:
            self.notes = [f"data.cache: not used, {error}"]

    def key(self, content: Callable[[], str | None]) -> str | None:
        """Return the name of what a source gives; None where nothing is kept, or where it has no content."""
        found = None if self._decides is None else content()
        return None if found is None else hashlib.sha256(f"{self._decides} {found}".encode()).hexdigest()

    def read(self, key: str | None) -> Loaded[Example] | None:
        """Return what was kept under this name, if every byte of it is as it was written."""
        if key is None:
            return None
        try:
            data = self._file(key).read_bytes()
        except OSError:
            return None
        content = data[_DIGEST_BYTES:]
        return _unpacked(content, self._kind) if data[:_DIGEST_BYTES] == _digest(key, content) else None

    def write(self, key: str, loaded: Loaded[Example]) -> None:
        """Keep what a source gave, at once and on the disk; where that cannot be, a note and no error."""
        content = _packed(loaded)
        try:
            _replace(self._file(key), [_digest(key, content), content])
        except OSError as error:
            reason = one_line(error.strerror or error, 200)
            self.notes = [f"data.cache: cannot write {self._folder}: {reason}; rows are tokenised at every start"]

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.rows"


class _UnknowableError(Exception):
    """Why it cannot be told whether rows would give the same ids again."""


def folder() -> Path:
    """Return the folder of all files; it need not exist."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():  # others are to be ignored, says the XDG Base Directory Specification
        return given / "rlhf"
    try:
        return Path.home() / ".cache/rlhf"
    except RuntimeError as error:
        raise _UnknowableError("there is no home folder; set XDG_CACHE_HOME") from error


def _code() -> str:
    """Return a SHA-256 over the code that makes ids of rows."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _options(config: DataConfig) -> list[Any]:
    options = {name: value for name, value in asdict(config).items() if name not in _CHANGES_NO_ROW}
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in options.items()}
    return [plain, [version(name) for name in _LIBRARIES]]


def _rendering(renderer: Renderer) -> list[Any]:
    """Return all that decides which ids a text becomes; raise _UnknowableError where that is more than can be told."""
    tokenizer: PreTrainedTokenizerBase = renderer.tokenizer
    kind, backend = type(tokenizer), getattr(tokenizer, "backend_tokenizer", None)
    if not kind.__module__.startswith("transformers.") or not isinstance(backend, Tokenizer):
        raise _UnknowableError(f"nothing tells whether this tokenizer ({kind.__name__}) has changed")
    if renderer.use_template and "strftime_now" in json.dumps(tokenizer.chat_template):
        raise _UnknowableError("the chat template asks for the time")
    backend.no_truncation()  # as every call does that does not ask for it
    backend.no_padding()
    return [
        [kind.__name__, backend.to_str(), tokenizer.split_special_tokens],
        [tokenizer.special_tokens_map, tokenizer.eos_token_id],
        [tokenizer.chat_template, renderer.use_template, renderer.system_prompt],
    ]


def _digest(key: str, content: bytes) -> bytes:
    digest = hashlib.sha256(key.encode())
    digest.update(content)
    return digest.digest()


def _packed(loaded: Loaded[Any]) -> bytes:
    """Return a safetensors file: ids [number of all], lengths [number of lists], rest [bytes of JSON]."""
    parts = [example.parts() for example in loaded.examples]
    lists = [ids for several, _ in parts for ids in several]
    rest = {"dropped": loaded.dropped, "examples": [[len(several), more] for several, more in parts]}
    arrays: dict[str, Any] = {
        "ids": np.fromiter(chain.from_iterable(lists), np.int32),
        "lengths": np.fromiter(map(len, lists), np.int64),
        "rest": np.frombuffer(json.dumps(rest).encode(), np.uint8),
    }
    return save(arrays)


def _unpacked(content: bytes, kind: type[Example]) -> Loaded[Example]:
    arrays = load(content)
    rest = json.loads(arrays["rest"].tobytes())
    lists = _cut(arrays["ids"].tolist(), arrays["lengths"].tolist())
    examples = [kind.of_parts([next(lists) for _ in range(number)], more) for number, more in rest["examples"]]
    return Loaded(examples, rest["dropped"])


def _cut(ids: list[int], lengths: list[int]) -> Iterator[Ids]:
    for start, end in pairwise(accumulate(lengths, initial=0)):
        yield tuple(ids[start:end])


def _replace(file: Path, parts: list[bytes]) -> None:
    """Write a file at once, whoever else writes it; raise OSError, and leave nothing, where it cannot be written."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as open_file:
            open_file.writelines(parts)
            open_file.flush()
            os.fsync(open_file.fileno())
        Path(aside).replace(file)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    sync(file.parent)
