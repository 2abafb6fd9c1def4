"""Whether two configurations of a run train the same. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlhf_cli.config.errors import InputError
from rlhf_cli.config.schema import structured

# Where a run lives, how it is cut into passes, watched and saved: none of it changes what is learnt but by rounding.
MAY_CHANGE = (
    "run.name",
    "run.output_dir",
    "run.resume",
    "launch.*",
    "plan.*",
    "check.*",
    "checkpoint.*",
    "guard.*",
    "report.*",
    "eval.every_steps",
    "deepspeed.zero_optimization.*",
    "*.micro_batch_size",
    "*.micro_batch_tokens",
    "*.eval_micro_batch_size",
    "*.gradient_checkpointing",
    "*.attn_implementation",
    "*.liger_kernel",
    "*.packing",
    "*.compile",
    "*.gather",
    "ppo.reuse_forward",
    "ppo.offload_frozen",
    "data.cache",
    "*.max_skipped_updates",
    *(f"reward.*.{key}" for key in ("url", "auth_env", "timeout_s", "retries", "concurrency", "batch_size")),
    *(f"reward.*.{key}" for key in ("on_failure", "max_failures", "offload", "random")),
)
_MAY_CHANGE = re.compile("|".join(key.replace(".", r"\.").replace("*", ".*") for key in MAY_CHANGE))
_MATTERS = re.compile(r"deepspeed\.zero_optimization\.zero_quantized.*")  # weights and gradients in fewer bits


@dataclass(frozen=True)
class Difference:
    """A key whose value is not what it was."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.was} -> {self.now}"


def differences(command: str, was: str, now: str) -> list[Difference]:
    """Compare two configurations of a command, as YAML; an option that one of them lacks has its default.

    Interpolations are compared as they are written. Raises InputError where one does not fit the schema.
    """
    first, second = (_flat(_merged(command, text)) for text in (was, now))
    return [
        Difference(key, first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    ]


def require_same(command: str, was: str, now: str, what: str) -> None:
    """Raise InputError, with the differences, where two configurations differ in what is learnt."""
    changed = [one for one in differences(command, was, now) if _matters(one.key)]
    if changed:
        listed = "; ".join(map(str, changed))
        raise InputError(f"{what} with other options: {listed}; only these may change: {', '.join(MAY_CHANGE)}")


def _matters(key: str) -> bool:
    return _MATTERS.fullmatch(key) is not None or _MAY_CHANGE.fullmatch(key) is None


def _merged(command: str, text: str) -> DictConfig:
    try:
        written = OmegaConf.create(text)
        if not isinstance(written, DictConfig):
            raise InputError("the configuration that was written down is damaged: not `key: value` lines")
        written.pop("defaults", None)
        merged = OmegaConf.merge(structured(command), written)
    except YAMLError as error:
        raise InputError(
            f"the configuration that was written down is damaged: {' '.join(str(error).split())}"
        ) from error
    except OmegaConfBaseException as error:
        reason = next(line for line in str(error).splitlines() if line)
        raise InputError(f"the configuration was written by another version: {reason}") from error
    assert isinstance(merged, DictConfig)
    return merged


def _flat(node: DictConfig) -> dict[str, Any]:
    options = flat(OmegaConf.to_container(node, resolve=False, enum_to_str=True))
    return {key: value for key, value in options.items() if value != {}}  # which has nothing to differ in


def flat(node: Any, key: str = "") -> dict[str, Any]:
    """Return what stands in nested sections by dotted keys; an empty section stands for itself.

    A list of sections with names counts as sections under their names, and their order as an option of its own.
    """
    if isinstance(node, list) and node and all(isinstance(one, dict) and "name" in one for one in node):
        node = {"[]": [one["name"] for one in node], **{str(one["name"]): one for one in node}}
    if not isinstance(node, dict) or (not node and key):
        return {key: node}
    found: dict[str, Any] = {}
    for name, inner in node.items():
        found |= flat(inner, f"{key}.{name}" if key else str(name))
    return found
