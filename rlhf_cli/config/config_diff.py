"""Compare the options of two runs. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.schema import structured

# Options that change at most the rounding of results. A resumed run may change them.
MAY_CHANGE = (
    *("run.name", "run.output_dir", "run.resume", "launch.*", "plan.*", "check.*", "checkpoint.*", "guard.*"),
    *("report.*", "eval.every_steps", "deepspeed.zero_optimization.*", "*.micro_batch_size", "*.micro_batch_tokens"),
    *("*.eval_micro_batch_size", "*.gradient_checkpointing", "*.attn_implementation", "*.liger_kernel", "*.packing"),
    *("*.compile", "*.gather", "ppo.reuse_forward", "ppo.offload_frozen", "data.cache", "*.max_skipped_updates"),
    *(f"reward.*.{key}" for key in ("url", "auth_env", "timeout_s", "retries", "concurrency", "batch_size")),
    *(f"reward.*.{key}" for key in ("on_failure", "max_failures", "offload", "random")),
)
_MAY_CHANGE = re.compile("|".join(key.replace(".", r"\.").replace("*", ".*") for key in MAY_CHANGE))
_MATTERS = re.compile(r"deepspeed\.zero_optimization\.zero_quantized.*")  # fewer bits per weight or gradient


@dataclass(frozen=True)
class Difference:
    """An option with different values in two configurations."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.was} -> {self.now}"


def differences(command: str, was: str, now: str) -> list[Difference]:
    """Compare two configurations of a command, given as YAML; missing options have their defaults.

    Interpolations are compared unresolved. Raises InputError if one does not fit the schema.
    """
    first, second = (_options(command, text) for text in (was, now))
    return [
        Difference(key, first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    ]


def require_same(command: str, was: str, now: str, what: str) -> None:
    """Raise InputError if an option that affects training differs.

    what: the start of the message, such as `outputs/a was started`.
    """
    changed = [
        str(one)
        for one in differences(command, was, now)
        if _MATTERS.fullmatch(one.key) or not _MAY_CHANGE.fullmatch(one.key)
    ]
    if changed:
        allowed = ", ".join(MAY_CHANGE)
        raise InputError(f"{what} with other options: {'; '.join(changed)}; only these may change: {allowed}")


def _options(command: str, text: str) -> dict[str, Any]:
    """Merge YAML into the schema; return the options by dotted keys."""
    try:
        saved = OmegaConf.create(text)
        if not isinstance(saved, DictConfig):
            raise InputError("the saved configuration is damaged: it must contain `key: value` lines")
        saved.pop("defaults", None)
        merged = OmegaConf.merge(structured(command), saved)
    except YAMLError as error:
        raise InputError(f"the saved configuration is damaged: {' '.join(str(error).split())}") from error
    except OmegaConfBaseException as error:
        reason = next(line for line in str(error).splitlines() if line)
        raise InputError(f"the saved configuration is from another version: {reason}") from error
    options = flat(OmegaConf.to_container(merged, resolve=False, enum_to_str=True))
    return {key: value for key, value in options.items() if value != {}}  # an empty section has no options


def flat(node: Any, key: str = "") -> dict[str, Any]:
    """Return nested sections as one mapping with dotted keys; an empty section is kept as a value.

    A list of sections with names becomes sections under these names; the order of the list is an
    option of its own.
    """
    if isinstance(node, list) and node and all(isinstance(one, dict) and "name" in one for one in node):
        node = {"[]": [one["name"] for one in node], **{str(one["name"]): one for one in node}}
    if not isinstance(node, dict) or (not node and key):
        return {key: node}
    found: dict[str, Any] = {}
    for name, inner in node.items():
        found |= flat(inner, f"{key}.{name}" if key else str(name))
    return found
