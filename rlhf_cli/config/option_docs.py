"""The options of a command as text, for `rlhf COMMAND --help` and docs/config.md."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf

from rlhf_cli.config.schema import COMMANDS


@dataclass(frozen=True)
class Option:
    key: str
    type: str
    default: str
    doc: str


@dataclass(frozen=True)
class Experiment:
    command: str
    name: str
    purpose: str


def options(command: str) -> list[Option]:
    """Return every option of `command` in the order of the schema; each must have a doc string."""
    return list(_options(COMMANDS[command](), ""))


def all_keys(command: str) -> list[str]:
    """Return every dotted key of the schema of `command`."""
    return [option.key for option in options(command)]


def experiments() -> list[Experiment]:
    """Return the packaged experiments, each with the `What:` line at the top of its file."""
    found = []
    for command in COMMANDS:
        folder = files("rlhf_cli.conf") / "experiment" / command.replace("-", "_")
        for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if file.name.endswith(".yaml"):
                found.append(Experiment(command, file.name.removesuffix(".yaml"), _purpose(file.read_text("utf-8"))))
    return found


def groups() -> dict[str, list[str]]:
    """Return the packaged configuration groups with their choices."""
    root = files("rlhf_cli.conf")
    return {
        group: sorted(file.name.removesuffix(".yaml") for file in (root / group).iterdir())
        for group in ("model", "data", "deepspeed")
    }


def _purpose(text: str) -> str:
    return next(line.partition("What:")[2].strip() for line in text.splitlines() if "What:" in line)


def _options(section: Any, prefix: str) -> Iterator[Option]:
    docs, hints = _docs(type(section)), get_type_hints(type(section))
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from _options(value, f"{prefix}{field.name}.")
            continue
        element = _element_type(hints[field.name])
        yield Option(prefix + field.name, _type_name(field, hints), _default(value), docs[field.name])
        if isinstance(element, type) and is_dataclass(element):
            yield from _options(element(), f"{prefix}{field.name}[].")


def _element_type(hint: object) -> Any:
    """Return the type of the elements of a list, None for other types."""
    return get_args(hint)[0] if get_origin(hint) is list else None


def _type_name(field: Field[object], hints: dict[str, Any]) -> str:
    hint, element = hints[field.name], _element_type(hints[field.name])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "|".join(member.name for member in hint)
    if element is not None:
        of = "sections" if is_dataclass(element) else "|".join(member.name for member in element)
        return f"list of {of}"
    text = str(field.type).replace(" | None", " or null").replace("dict[str, Any]", "mapping")
    return text.replace(" | ", " or ").replace("Sources", "path or list of sources")


def _default(value: object) -> str:
    if value == MISSING:
        return "required"
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return f"[{', '.join(_default(one) for one in value)}]"
    return OmegaConf.to_yaml([value]).strip().removeprefix("- ")


def _docs(section: type) -> dict[str, str]:
    """Return field name -> doc string below the field, including inherited fields."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__[:-1]):
        found |= _module_docs(base.__module__)[base.__name__]
    return found


@cache
def _module_docs(module: str) -> dict[str, dict[str, str]]:
    """Return class name -> field name -> doc string for the classes of a module."""
    classes = [
        node for node in ast.parse(inspect.getsource(sys.modules[module])).body if isinstance(node, ast.ClassDef)
    ]
    return {
        node.name: {
            ast.unparse(field.target): " ".join(ast.literal_eval(below.value).split())
            for field, below in pairwise(node.body)
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
        }
        for node in classes
    }
