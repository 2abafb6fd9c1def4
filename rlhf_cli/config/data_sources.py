"""Sources of rows: a path, or a list of paths with weights, splits, filters and formats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rlhf_cli.config.errors import InputError, require

Sources = Any  # a path, or a list of paths and mappings; OmegaConf has no type for this
MAX_WEIGHT = 1000.0  # reading a row more often in one pass is most likely a typo
_SCALARS = (str, int, float, bool, type(None))


class Format(Enum):
    auto = "auto"  # detected from the first rows
    columns = "columns"
    hh = "hh"
    messages = "messages"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    rated = "rated"
    rated_rows = "rated_rows"


@dataclass(frozen=True)
class Source:
    """One source of rows."""

    path: str
    weight: float = 1.0  # how often each row is drawn in a pass; 0.25: a quarter of the rows
    split: str | None = None  # of a Hub dataset or a saved DatasetDict; None: the option's split
    filter: dict[str, Any] = field(default_factory=dict)  # column -> accepted value or list of values
    options: dict[str, Any] = field(default_factory=dict)  # overrides of the data section


def parse_sources(value: Sources, key: str, own_filter: Mapping[str, Any], overridable: frozenset[str]) -> list[Source]:
    """Return the sources that an option lists; raise InputError if it is malformed.

    key: name of the option in messages (data.train). own_filter: filter of sources without one.
    overridable: options that a source may override.
    """
    is_single = isinstance(value, str)
    entries = [value] if is_single else value
    got = type(value).__name__ if not isinstance(entries, list) else "an empty list"
    require(isinstance(entries, list) and len(entries) > 0, key, got, "a path or a list of sources")
    check_filter(own_filter, f"{key}_filter")
    return [
        _parse_source(entry, key if is_single else f"{key}[{index}]", own_filter, overridable)
        for index, entry in enumerate(entries)
    ]


def check_filter(wanted: object, key: str) -> None:
    """Raise InputError unless a filter maps columns to values or lists of values."""
    if not isinstance(wanted, Mapping):
        raise InputError(f"{key} must be a mapping such as {{split: train}}, got {type(wanted).__name__}")
    for name, value in wanted.items():
        values = value if isinstance(value, list) else [value]
        is_valid = len(values) > 0 and all(isinstance(one, _SCALARS) for one in values)
        require(is_valid, f"{key}.{name}", repr(value), "a value or a list of values")


def _parse_source(entry: object, key: str, own_filter: Mapping[str, Any], overridable: frozenset[str]) -> Source:
    given = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(given, Mapping):
        raise InputError(f"{key} must be a path or a mapping with a path, got {type(entry).__name__}")
    allowed = {"path", "weight", "split", "filter", "format"} | overridable
    if unknown := sorted(str(name) for name in given if name not in allowed):
        raise InputError(f"{key}: unknown key {unknown[0]}; known keys: {', '.join(sorted(allowed))}")
    path, split, weight = given.get("path"), given.get("split"), given.get("weight", 1.0)
    require(isinstance(path, str) and path != "", f"{key}.path", repr(path), "a path")
    require(isinstance(split, str | None), f"{key}.split", repr(split), "the name of a split")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
    in_range = is_number and 0 < weight <= MAX_WEIGHT
    require(in_range, f"{key}.weight", repr(weight), f"above 0 and at most {MAX_WEIGHT:g}")
    wanted = given.get("filter", own_filter)
    check_filter(wanted, f"{key}.filter")
    options = {name: _parse_option(name, given[name], key) for name in given if name in overridable | {"format"}}
    return Source(str(path), float(weight), split, dict(wanted), options)


def _parse_option(name: str, value: object, key: str) -> object:
    if name == "format":
        known = [one.name for one in Format]
        require(value in known, f"{key}.format", repr(value), f"one of {', '.join(known)}")
        return Format[str(value)]
    require(isinstance(value, str | None), f"{key}.{name}", repr(value), "the name of a column")
    return value
