"""Remove secrets from options and command lines before they are written or sent."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "<hidden>"
_SECRET_NAME = re.compile(  # matches hub_token but not max_tokens
    r"(?i)(token|secret|password|passwd|(api|access|private|secret)[_-]?key|credentials?)$"
)
# https://user:password@host, https://host/score?api_key=...
_SECRET_URL = re.compile(r"(?i)://([^/\s]*@|\S*[?&][^=&\s]*(key|token|secret|sig|auth|passw)[^=&\s]*=)")
_ENVIRONMENT_VARIABLE = re.compile(r"\$\{oc\.env:\s*\w+\s*\}")  # a name without a default is not secret


def is_secret(key: str) -> bool:
    """Return whether the name of an option indicates a secret value."""
    return _SECRET_NAME.search(key) is not None


def redact(node: Any) -> Any:
    """Return nested options with secret values and URLs with credentials replaced."""
    if isinstance(node, list):
        return [redact(inner) for inner in node]
    if not isinstance(node, dict):
        return HIDDEN if isinstance(node, str) and _SECRET_URL.search(node) else node
    return {
        key: HIDDEN if is_secret(str(key)) and value is not None and not _is_variable(value) else redact(value)
        for key, value in node.items()
    }


def redact_args(args: list[str]) -> list[str]:
    """Return a command line; the value of `key=value` is hidden if it, or a key inside it, is secret."""
    kept = []
    for arg in args:
        key, equals, value = arg.partition("=")
        names = [key, *re.findall(r"([\w-]+)['\"]?\s*:", value)] if equals else []
        hide = _SECRET_URL.search(value) or (any(is_secret(name) for name in names) and not _is_variable(value))
        kept.append(f"{key}={HIDDEN}" if hide else arg)
    return kept


def _is_variable(value: Any) -> bool:
    return isinstance(value, str) and _ENVIRONMENT_VARIABLE.fullmatch(value) is not None
