"""The rows of one file, folder or Hub id, and a key that changes with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import COMPRESSIONS, resolve_path
from rlhf_cli.data.bad_rows import NUM_SHOWN, BadRow, Row
from rlhf_cli.data.csv_rows import read_csv
from rlhf_cli.data.json_rows import read_json, read_jsonl
from rlhf_cli.system.durable_files import sha256
from rlhf_cli.system.text import one_line

PlacedRow = tuple[str, Row | BadRow]  # a place such as `pairs.jsonl:3`, and the row there
_READERS = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv}
_COMPRESSIBLE = (".jsonl", ".json")
_BATCH_ROWS = 1000  # rows of a table that become Python objects at a time


def load_rows(path: str, split: str, key: str) -> Iterator[PlacedRow]:
    """Yield (place, row) for every row of one source.

    path: a .jsonl or .json file, possibly compressed, a .csv or .parquet file, a folder of
    `save_to_disk`, `pkg://...`, or a Hub id. split: of a DatasetDict or a Hub id; files have none.
    key: the option, data.train or data.eval, for messages. Places count from 1: `pairs.jsonl:3` is
    a line, `pairs.csv: row 3` a row. Raises InputError for a source that cannot be read.
    """
    source = resolve_path(path, key)
    datasets.disable_progress_bars()
    is_empty = True
    try:
        for row in _read(source, path, split, key):
            is_empty = False
            yield row
    except InputError:
        raise
    except Exception as error:  # datasets raises classes of many modules
        raise InputError(f"{key}={path}: cannot read rows: {_reason(error.__cause__ or error, source)}") from error
    if is_empty:
        raise InputError(f"{key}={path}: no rows")


def _read(source: str, name: str, split: str, key: str) -> Iterator[PlacedRow]:
    file = Path(source)
    inner = Path(file.stem).suffix
    suffix = inner if file.suffix in COMPRESSIONS and inner in _COMPRESSIBLE else file.suffix
    if file.is_file() and suffix in _READERS:
        yield from _READERS[suffix](file, name)
        return
    dataset = _dataset(source, split)
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise InputError(f"{key}={name}: no split '{split}'; there are: {', '.join(dataset)}; set {key}_split")
        dataset = dataset[split]
    number = 0
    for table in dataset.with_format("arrow").iter(_BATCH_ROWS):
        for row in table.to_pylist():
            number += 1
            yield f"{name}: row {number}", row


def _dataset(source: str, split: str) -> Any:
    path = Path(source)
    if path.is_file():
        if path.suffix != ".parquet":
            known = ", ".join([*_READERS, ".parquet"])
            raise InputError(f"{source}: unknown file type '{path.suffix}', wanted one of {known}")
        return datasets.load_dataset("parquet", data_files=source, split="train")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return datasets.load_from_disk(source)
    return datasets.load_dataset(source, split=split)


def content_of(source: str, split: str) -> str | None:
    """Return a key that changes with the rows of a source; None where it cannot be read.

    The key is a SHA-256 of a file or of all files of a folder, or the fingerprint of a Hub id. A
    saved folder has a fingerprint too, but not always a new one where a function made other rows.
    """
    path = Path(source)
    try:
        if path.is_file():
            return f"{split} {''.join(path.suffixes[-2:])} {sha256(path)}"
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            listing = "".join(f"{sha256(file)} {file.relative_to(path)}\n" for file in files)
            return f"{split} {hashlib.sha256(listing.encode()).hexdigest()}"
        datasets.disable_progress_bars()
        return f"{split} {_dataset(source, split)._fingerprint}"
    except Exception:  # of as many classes as in load_rows
        return None


def _reason(error: BaseException, source: str) -> str:
    if isinstance(error, UnicodeDecodeError) and source.endswith(".csv"):
        with open(source, "rb") as file:
            bad = [number for number, line in enumerate(file, 1) if "\ufffd" in line.decode(errors="replace")]
        return f"{len(bad)} lines are not UTF-8 text, the first of them {', '.join(map(str, bad[:NUM_SHOWN]))}"
    return one_line(error, 300) or f"the file is empty or not of its type ({type(error).__name__})"
