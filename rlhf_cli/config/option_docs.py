"""The options of a command as text, read from the schema's sources: for `rlhf COMMAND --help` and docs/config.md."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from enum import Enum
from importlib.resources import files
from typing import get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf

from rlhf_cli.config import guard_options as guards
from rlhf_cli.config import objectives, schema, sections
from rlhf_cli.config import plan_options as plan
from rlhf_cli.config import report_options as report
from rlhf_cli.config import reward_options as rewards


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
    """Return every option of `command` in the schema's order; raise AssertionError for one without a doc."""
    return list(_options(schema.COMMANDS[command](), ""))


def experiments() -> list[Experiment]:
    """Return the packaged experiments, each with the `What:` line that its file opens with."""
    found = []
    for command in schema.COMMANDS:
        folder = files("rlhf_cli.conf") / "experiment" / command.replace("-", "_")
        for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if file.name.endswith(".yaml"):
                found.append(Experiment(command, file.name.removesuffix(".yaml"), _purpose(file.read_text("utf-8"))))
    return found


def groups() -> dict[str, list[str]]:
    """Return the packaged configuration groups (model, data, deepspeed) with the names of their options."""
    root = files("rlhf_cli.conf")
    return {
        group: sorted(file.name.removesuffix(".yaml") for file in (root / group).iterdir())
        for group in ("model", "data", "deepspeed")
    }


def _purpose(text: str) -> str:
    return next(line.partition("What:")[2].strip() for line in text.splitlines() if "What:" in line)


def _options(node: object, prefix: str) -> Iterator[Option]:
    assert is_dataclass(node)
    assert not isinstance(node, type)
    docs = {
        name: doc for base in reversed(type(node).__mro__) for name, doc in _field_docs().get(base.__name__, {}).items()
    }
    hints = get_type_hints(type(node))
    for field in fields(node):
        value = getattr(node, field.name)
        if is_dataclass(value):
            yield from _options(value, f"{prefix}{field.name}.")
        else:
            yield Option(prefix + field.name, _type_name(field, hints), _default(value), docs[field.name])
            inner = element_type(hints[field.name])
            if inner is not None:
                yield from _options(inner(), f"{prefix}{field.name}[].")


def element_type(hint: object) -> type | None:
    """Return the section that every element of a list of sections is; None for other types of options."""
    [inner] = get_args(hint) if get_origin(hint) is list else [None]
    return inner if isinstance(inner, type) and is_dataclass(inner) else None


def _type_name(field: Field[object], hints: dict[str, object]) -> str:
    hint = hints[field.name]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "|".join(member.name for member in hint)
    if get_origin(hint) is list:
        [inner] = get_args(hint)
        if is_dataclass(inner):
            return "list of sections"
        return f"list of {'|'.join(member.name for member in inner)}"
    text = str(field.type).replace(" | None", " or null").replace("dict[str, Any]", "mapping")
    return text.replace("Sources", "path or list of sources")


def _default(value: object) -> str:
    if value == MISSING:
        return "required"
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return f"[{', '.join(_default(one) for one in value)}]"
    return OmegaConf.to_yaml([value]).strip().removeprefix("- ")


def _field_docs() -> dict[str, dict[str, str]]:
    """Class name -> field name -> the string below the field."""
    modules = [
        ast.parse(inspect.getsource(module)) for module in (sections, objectives, guards, plan, report, rewards, schema)
    ]
    docs: dict[str, dict[str, str]] = {}
    for node in (node for module in modules for node in module.body):
        if isinstance(node, ast.ClassDef):
            pairs = zip(node.body, node.body[1:], strict=False)
            docs[node.name] = {
                field.target.id: " ".join(text.value.value.split())
                for field, text in pairs
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            }
    return docs
