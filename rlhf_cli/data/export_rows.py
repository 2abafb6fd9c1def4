"""Rows of any format written as lines of one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import DiskError, InputError
from rlhf_cli.config.paths import resolve_pattern
from rlhf_cli.config.sections import DataConfig, PreferenceDataConfig
from rlhf_cli.data.bad_rows import BadRow, Rejected, Row, json_value, summary
from rlhf_cli.data.conversation import is_empty
from rlhf_cli.data.preferences import judged, wanted_columns
from rlhf_cli.data.read_rows import load_rows
from rlhf_cli.data.row_formats import asked, empty, question_columns
from rlhf_cli.data.row_pipeline import Conversion, Filtered
from rlhf_cli.system.text import one_line


def write(config: DataConfig, target: str) -> list[str]:
    """Write all rows of `data.train` to a new .jsonl file; return what was kept and dropped, one line a file.

    Raises InputError, and writes nothing, for rows that are refused and for a file that exists.
    """
    out = Path(target).expanduser()
    if out.suffix != ".jsonl":
        raise InputError(f"data convert: the last word is the file to write, a new .jsonl, got {one_line(target, 200)}")
    if os.path.lexists(out):
        raise InputError(f"data convert: {out} exists and is never overwritten; give another name")
    try:
        descriptor, aside = tempfile.mkstemp(dir=out.parent, prefix=".", suffix=".tmp")
        os.close(descriptor)
    except OSError as error:
        raise InputError(f"data convert: cannot write {out}: {error.strerror}") from error
    try:
        notes = _write_rows(config, Path(aside))
        os.chmod(aside, 0o666 & ~_umask())
        os.link(aside, out)  # which overwrites nothing, whoever has made it meanwhile
    except FileExistsError as error:
        raise InputError(f"data convert: {out} exists and is never overwritten; give another name") from error
    except OSError as error:
        raise DiskError(f"data convert: cannot write {out}: {error.strerror}") from error
    finally:
        Path(aside).unlink()
    return notes


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _write_rows(config: DataConfig, file: Path) -> list[str]:
    notes = []
    kinds: set[bool] = set()
    with file.open("w", encoding="utf-8") as lines:
        for source in config.train_sources():
            options = config.of_source(source)
            for path in resolve_pattern(source.path, "data.train"):
                rows = Filtered(load_rows(path, source.split or "", "data.train"), source.filter)
                notes.append(_write_file(rows, path, options, lines, kinds))
    return notes


def _write_file(rows: Filtered, path: str, options: DataConfig, lines: TextIO, kinds: set[bool]) -> str:
    """Write the rows of one file; kinds: whether the lines so far are rankings."""
    label, rejected, written = f"data.train={path}", Rejected(), 0
    conversion: Conversion[Row] = Conversion(rows, label, options, _prepared)
    for place, found in conversion:
        if isinstance(found, BadRow):
            rejected.add(place, found)
        else:
            kinds.add("completions" in found)
            if len(kinds) > 1 and isinstance(options, PreferenceDataConfig):
                raise InputError(f"data convert: {path}: pairs and rankings in one file; convert them apart")
            lines.write(json.dumps(found, ensure_ascii=False) + "\n")
            written += 1
    conversion.check()
    rejected.raise_if_refused(label, conversion.num_rows)
    return summary(path, written, dict(rejected.dropped), rows.others, conversion.format.name)


def _prepared(options: DataConfig, row_format: Format) -> tuple[dict[str, str], Callable[[Row], Row]]:
    """Return the columns that rows must have, and what makes a line of a row."""
    if isinstance(options, PreferenceDataConfig):
        return wanted_columns(options, row_format), lambda row: _pair(row, options, row_format)
    is_named = row_format in (Format.columns, Format.rated_rows)
    wanted = {options.prompt_column: "data.prompt_column"} if is_named else {}
    return wanted, lambda row: _prompt(row, options, row_format)


def _is_ranking(row: Row, options: PreferenceDataConfig, row_format: Format) -> bool:
    """Say whether a row is one of rankings of any number of answers, or else a pair."""
    is_rated = row_format in (Format.rated, Format.rated_rows) or options.ranking_column is not None
    return is_rated or (row_format is Format.alpaca and isinstance(row.get("output"), list))


def _pair(row: Row, options: PreferenceDataConfig, row_format: Format) -> Row:
    """Return a pair with its answers as texts, or a ranking as rated completions, which may be tied."""
    said = judged(row, options, row_format)
    texts = [text for _, text in said.case.answers]
    line: Row = {"prompt": said.case.messages}
    if not _is_ranking(row, options, row_format):
        line |= {"chosen": texts[0], "rejected": texts[1]}
    else:
        ranks = said.case.ranks or tuple(range(len(texts)))
        rated = zip(texts, ranks, strict=True)
        line["completions"] = [{"response": text, "rating": max(ranks) - rank + 1} for text, rank in rated]
    given: dict[str, tuple[str | None, Any]] = {
        "margin": (options.margin_column, said.margin),
        "confidence": (options.confidence_column, said.confidence),
        "weight": (options.weight_column, said.weight),
        "category": (options.category_column, said.category),
    }
    return line | {name: value for name, (column, value) in given.items() if column is not None}


def _prompt(row: Row, options: DataConfig, row_format: Format) -> Row:
    """Return a prompt as messages, and the other columns of its row.

    Raises InputError for another column that a line has no other name for.
    """
    messages = asked(row, options, row_format)
    if is_empty(messages):
        raise empty(options.prompt_column, options)
    questions = question_columns(options, row_format)
    if "prompt" in row and "prompt" not in questions:
        raise InputError(
            f"data convert: a column 'prompt' stands beside data.prompt_column={options.prompt_column}, and lines have"
            " the prompt there; rename it"
        )
    others = {name: json_value(content) for name, content in row.items() if name not in questions}
    return {"prompt": messages, **others}
