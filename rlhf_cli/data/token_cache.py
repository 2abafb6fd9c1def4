"""Token ids of a source, kept from one start to the next, and read from the disk one row at a time.

They lie in `$XDG_CACHE_HOME/rlhf`, or `~/.cache/rlhf`. Not below HF_HOME: that is laid out, listed and emptied by the
Hub's own tools, and often shared or read-only. Every file may be deleted at any time.

A file is named after a SHA-256 over all that decides what is in it. It holds a SHA-256 over that name and what
follows; the records of all examples (store.py); int64 offsets of the records, one more than there are; what was left
out, as JSON; int64 length of that JSON, and number of the offsets.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from rlhf_cli.config.sections import DataConfig
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.row_store import DIGEST_BYTES, Example, RowFile, Spool, Stored
from rlhf_cli.system.durable_files import sync
from rlhf_cli.system.text import one_line

FORMAT = 2  # of the files; what decides the ids themselves is the code of this folder, which counts too
_LIBRARIES = ("datasets", "jinja2", "tokenizers", "transformers")
_CHANGES_NO_ROW = (  # of DataConfig; a filter stands in the name beside the content
    *("train", "train_split", "train_filter", "eval", "eval_split", "eval_filter", "eval_fraction", "cache"),
)
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Account:
    """What became of the rows of one source."""

    dropped: dict[str, int]  # reason -> rows
    others: int = 0  # rows that the filter leaves to others
    unfit: str = ""  # that it leaves none, with what is there
    format: str = "columns"


@dataclass(frozen=True)
class Loaded(Generic[Example]):
    """What one source gave."""

    examples: Sequence[Example]
    account: Account


class RowCache(Generic[Example]):
    """The files for one set of data options, one tokenizer and one kind of example."""

    def __init__(self, config: DataConfig, renderer: Renderer, kind: type[Example]) -> None:
        self.notes: list[str] = []  # why nothing can be kept, one line
        self.kind = kind
        self._decides: str | None = None
        if not config.cache:
            return
        try:
            self._folder = folder()
            self._decides = json.dumps([FORMAT, kind.__name__, _code(), *_rendering(renderer)])
        except _UnknowableError as error:
            self.notes = [f"data.cache: not used, {error}"]

    def key(self, options: DataConfig, wanted: Mapping[str, Any], content: Callable[[], str | None]) -> str | None:
        """Return the name of what a source gives with some options and a filter; None where nothing is kept, or where
        it has no content.
        """
        found = None if self._decides is None else content()
        if found is None:
            return None
        decides = f"{self._decides} {json.dumps([*_options(options), dict(wanted)])} {found}"
        return hashlib.sha256(decides.encode()).hexdigest()

    def read(self, key: str | None) -> Loaded[Example] | None:
        """Return what was kept under this name, if every byte of it is as it was written."""
        if key is None:
            return None
        try:
            file = RowFile.opened(self._file(key))
        except OSError:
            return None
        return self._read(file, key)

    def _read(self, file: RowFile, key: str) -> Loaded[Example] | None:
        try:
            if file.size < DIGEST_BYTES + 16 or file.read(0, DIGEST_BYTES) != _digest(key, file):
                return None
            length, number = array("q", file.read(file.size - 16, 16))
            start = file.size - 16 - length
            account = Account(**json.loads(file.read(start, length)))
            offsets = array("q")
            while len(offsets) < number:
                missing = 8 * (number - len(offsets))
                offsets.frombytes(file.read(start - missing, min(_BLOCK_BYTES, missing)))
        except OSError:
            return None
        return Loaded(Stored(file, offsets, self.kind, self._file(key)), account)

    def draft(self, key: str | None) -> Draft[Example]:
        """Return where the examples of a source are to be written, to be kept under this name."""
        if key is None:
            return Draft(self.kind, None)
        try:
            return Draft(self.kind, self._file(key))
        except OSError as error:
            self._tell(error)
            return Draft(self.kind, None)

    def keep(self, draft: Draft[Example], key: str, account: Account) -> None:
        """Keep what was written, at once and on the disk; where that cannot be, a note and no error."""
        try:
            draft.publish(key, account)
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        reason = one_line(error.strerror or error, 200)
        self.notes = [f"data.cache: cannot write {self._folder}: {reason}; rows are tokenised at every start"]

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.rows"


class Draft(Generic[Example]):
    """The examples of one source while they are written: to a file without a name, or to one that will get a name."""

    def __init__(self, kind: type[Example], target: Path | None) -> None:
        """Make the file; raise OSError where it is to have a name and cannot be made."""
        self._target = target
        self._aside: Path | None = None
        self._kept: Path | None = None
        self._file = _nameless() if target is None else self._begun(target)
        self.spool = Spool(self._file, kind)

    def _begun(self, target: Path) -> RowFile:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".tmp")
        self._aside, file = Path(aside), RowFile(descriptor)
        try:
            file.append(bytes(DIGEST_BYTES))
        except OSError:
            self.close()
            raise
        return file

    def publish(self, key: str, account: Account) -> None:
        """Give the file its name; raise OSError, and leave nothing, where that cannot be."""
        try:
            if self.spool.failed is not None:
                raise self.spool.failed
            if self._aside is None or self._file is None or self._target is None:
                return  # why, has been told
            rest = json.dumps(asdict(account)).encode()
            offsets = self.spool.offsets
            self._file.append(offsets.tobytes() + rest + array("q", [len(rest), len(offsets)]).tobytes())
            self._file.settle(_digest(key, self._file))
            self._aside.replace(self._target)
            sync(self._target.parent)
            self._aside, self._kept = None, self._target
        finally:
            self.close()

    def close(self) -> None:
        """Take away the name that the file had meanwhile; what was written can still be read."""
        if self._aside is not None:
            self._aside.unlink(missing_ok=True)
            self._aside = None

    def loaded(self, account: Account) -> Loaded[Example]:
        """Return what was written."""
        return Loaded(self.spool.examples(self._kept), account)


def _nameless() -> RowFile | None:
    """Return a file that is gone when it is closed; None where there is room for none."""
    try:
        descriptor, name = tempfile.mkstemp(prefix="rlhf-")
    except OSError:
        return None
    Path(name).unlink()
    return RowFile(descriptor)


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


def _digest(key: str, file: RowFile) -> bytes:
    """Return a SHA-256 over a name and all of a file behind its first bytes."""
    digest = hashlib.sha256(key.encode())
    place = DIGEST_BYTES
    while block := file.read(place, _BLOCK_BYTES):
        digest.update(block)
        place += len(block)
    return digest.digest()
