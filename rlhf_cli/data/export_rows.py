"""Rows of any format, written as lines of one format."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import DiskError, InputError
from rlhf_cli.config.sections import DataConfig, PreferenceDataConfig
from rlhf_cli.data.bad_rows import Row, json_value
from rlhf_cli.data.preferences import read_preference, required_columns
from rlhf_cli.data.row_formats import prompt_columns, read_prompt, required_prompt_columns
from rlhf_cli.data.row_pipeline import Conversion, SourceFile, describe, files_of
from rlhf_cli.system.text import one_line


def export_rows(config: DataConfig, target: str) -> list[str]:
    """Write all rows of `data.train` to a new .jsonl file; return one note per source file.

    Raises InputError for bad rows and for a file that exists, and then writes nothing.
    """
    out = Path(target).expanduser()
    if out.suffix != ".jsonl":
        raise InputError(
            f"data convert: the last argument is the new .jsonl file to write, got {one_line(target, 200)}"
        )
    exists = InputError(f"data convert: {out} exists and is never overwritten; choose another name")
    if os.path.lexists(out):
        raise exists
    try:
        descriptor, temporary = tempfile.mkstemp(dir=out.parent, prefix=".", suffix=".tmp")
    except OSError as error:
        raise InputError(f"data convert: cannot write {out}: {error.strerror}") from error
    try:
        with open(descriptor, "w", encoding="utf-8") as lines:
            files = [file for source in config.train_sources() for file in files_of(config, source, "data.train")]
            kinds: set[bool] = set()
            notes = [_write_file(file, lines.write, kinds) for file in files]
        os.umask(mask := os.umask(0o077))  # the only way to read it
        os.chmod(temporary, 0o666 & ~mask)
        os.link(temporary, out)  # fails where another process has made the file meanwhile
    except FileExistsError as error:
        raise exists from error
    except OSError as error:
        raise DiskError(f"data convert: cannot write {out}: {error.strerror}") from error
    finally:
        Path(temporary).unlink()
    return notes


def _write_file(file: SourceFile, write: Callable[[str], int], kinds: set[bool]) -> str:
    """Write the rows of one file; kinds: whether the lines so far are rankings."""
    num_written = 0

    def append(line: Row) -> None:
        nonlocal num_written
        kinds.add("completions" in line)
        if len(kinds) > 1 and isinstance(file.options, PreferenceDataConfig):
            raise InputError(f"data convert: {file.path}: pairs and rankings in one file; convert them separately")
        write(json.dumps(line, ensure_ascii=False) + "\n")
        num_written += 1

    summary = Conversion(file, _prepare).convert_all(append)
    return describe(file.path, num_written, [summary])


def _prepare(options: DataConfig, row_format: Format) -> tuple[dict[str, str], Callable[[Row], Row]]:
    if isinstance(options, PreferenceDataConfig):
        return required_columns(options, row_format), lambda row: _preference_line(row, options, row_format)
    return required_prompt_columns(options, row_format), lambda row: _prompt_line(row, options, row_format)


def _preference_line(row: Row, options: PreferenceDataConfig, row_format: Format) -> Row:
    """Return a pair with its answers as texts, or a ranking as rated completions."""
    comparison, values = read_preference(row, options, row_format)
    texts = [text for _, text in comparison.answers]
    is_ranking = row_format in (Format.rated, Format.rated_rows) or options.ranking_column is not None
    line: Row = {"prompt": comparison.messages}
    if is_ranking or (row_format is Format.alpaca and isinstance(row.get("output"), list)):
        ranks = comparison.ranks or tuple(range(len(texts)))
        rated = zip(texts, ranks, strict=True)
        line["completions"] = [{"response": text, "rating": max(ranks) - rank + 1} for text, rank in rated]
    else:
        line |= {"chosen": texts[0], "rejected": texts[1]}
    return line | {name: value for name, value in values.items() if getattr(options, f"{name}_column") is not None}


def _prompt_line(row: Row, options: DataConfig, row_format: Format) -> Row:
    """Return a prompt as messages, and the extra columns of its row."""
    messages, used = read_prompt(row, options, row_format), prompt_columns(options, row_format)
    if "prompt" in row and "prompt" not in used:
        raise InputError(
            f"data convert: rows have a column 'prompt' in addition to data.prompt_column={options.prompt_column}, and"
            " the prompt is written to that column; rename it"
        )
    return {"prompt": messages, **{name: json_value(value) for name, value in row.items() if name not in used}}
