"""Where rows come from: one path, or a list of paths with weights, splits, filters and formats. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rlhf_cli.config.errors import InputError

Sources = Any  # a path, or a list of paths and mappings; OmegaConf has no type for such a choice
MAX_WEIGHT = 1000.0  # a pass that reads a row more often than that is a slip of the pen
_SCALARS = (str, int, float, bool, type(None))


class Format(Enum):
    auto = "auto"  # told from the first rows
    columns = "columns"
    hh = "hh"
    messages = "messages"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    rated = "rated"
    rated_rows = "rated_rows"


@dataclass(frozen=True)
class Source:
    """One place that rows come from."""

    path: str
    weight: float = 1.0  # how often each of its rows is drawn in a pass; 0.25: a quarter of them
    split: str | None = None  # of a Hub id or a saved DatasetDict; None: that of the option
    filter: dict[str, Any] = field(default_factory=dict)  # column -> the value, or list of values, that rows must have
    options: dict[str, Any] = field(default_factory=dict)  # of the data section, for these rows alone


def sources_of(value: Sources, key: str, own_filter: Mapping[str, Any], overridable: frozenset[str]) -> list[Source]:
    """Return the sources that an option names; `key` (data.train) names it in messages.

    own_filter: that of the option, for sources without one; overridable: the options that a source may set for itself.
    Raises InputError for anything else than a path or a list of paths and mappings.
    """
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or not entries:
        got = type(value).__name__ if not isinstance(value, list) else "an empty one"
        raise InputError(f"{key} must be a path or a list of sources, got {got}")
    several = not isinstance(value, str)
    check_filter(own_filter, f"{key}_filter")
    return [
        _source(entry, f"{key}[{place}]" if several else key, own_filter, overridable)
        for place, entry in enumerate(entries)
    ]


def check_filter(wanted: object, key: str) -> None:
    """Raise InputError unless a filter is a mapping from columns to values or lists of values."""
    if not isinstance(wanted, Mapping):
        raise InputError(f"{key} must be a mapping such as {{split: train}}, got {type(wanted).__name__}")
    for name, value in wanted.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(one, _SCALARS) for one in values):
            raise InputError(f"{key}.{name} must be a value or a list of values, got {value!r}")


def _source(entry: object, key: str, own_filter: Mapping[str, Any], overridable: frozenset[str]) -> Source:
    given = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(given, Mapping):
        raise InputError(f"{key} must be a path or a mapping with a path, got {type(entry).__name__}")
    allowed = {"path", "weight", "split", "filter", "format"} | overridable
    if unknown := sorted(str(name) for name in given if name not in allowed):
        raise InputError(f"{key}: unknown key {unknown[0]}; there are: {', '.join(sorted(allowed))}")
    path, split = given.get("path"), given.get("split")
    if not isinstance(path, str) or not path:
        raise InputError(f"{key}.path must be a path, got {path!r}")
    if not isinstance(split, str | None):
        raise InputError(f"{key}.split must be a name, got {split!r}")
    wanted = given.get("filter", own_filter)
    check_filter(wanted, f"{key}.filter")
    options = {name: _option(name, given[name], key) for name in given if name in overridable | {"format"}}
    return Source(path, _weight(given.get("weight", 1.0), key), split, dict(wanted), options)


def _weight(weight: object, key: str) -> float:
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
    if not is_number or not 0 < weight <= MAX_WEIGHT:  # type: ignore[operator]
        raise InputError(f"{key}.weight must be over 0 and at most {MAX_WEIGHT:g}, got {weight!r}")
    return float(weight)  # type: ignore[arg-type]


def _option(name: str, value: object, key: str) -> object:
    if name == "format":
        known = [one.name for one in Format]
        if value not in known:
            raise InputError(f"{key}.format must be one of {', '.join(known)}, got {value!r}")
        return Format[str(value)]
    if not isinstance(value, str | None):
        raise InputError(f"{key}.{name} must be the name of a column, got {value!r}")
    return value
