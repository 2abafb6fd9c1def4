"""What of the options is nobody's business, and is written down nowhere. Imports nothing."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "<hidden>"
_SECRET = re.compile(  # max_tokens is none
    r"(?i)(token|secret|password|passwd|(api|access|private|secret)[_-]?key|credentials?)$"
)


def is_secret(key: str) -> bool:
    """Say whether an option's name says that its value is nobody's business."""
    return _SECRET.search(key) is not None


def hidden(node: Any) -> Any:
    """Return options, as dicts and lists, without what is secret by its key, and without logins in URLs."""
    if isinstance(node, list):
        return [hidden(inner) for inner in node]
    if not isinstance(node, dict):
        return HIDDEN if isinstance(node, str) and _has_secret(node) else node
    return {
        key: HIDDEN if is_secret(str(key)) and value is not None and not _is_only_named(value) else hidden(value)
        for key, value in node.items()
    }


def hide_words(words: list[str]) -> list[str]:
    """Return the words of a command line; in `key=value` the value goes, where it or a key inside it is secret."""
    kept = []
    for word in words:
        key, equals, value = word.partition("=")
        names = [key, *re.findall(r"([\w-]+)['\"]?\s*:", value)] if equals else []
        hide = _has_secret(value) or (any(is_secret(name) for name in names) and not _is_only_named(value))
        kept.append(f"{key}={HIDDEN}" if hide else word)
    return kept


def _has_secret(value: str) -> bool:
    """`https://me:secret@host`, `https://host/score?api_key=secret`."""
    return re.search(r"(?i)://([^/\s]*@|\S*[?&][^=&\s]*(key|token|secret|sig|auth|passw)[^=&\s]*=)", value) is not None


def _is_only_named(value: Any) -> bool:
    """A variable of the environment, by name and without a default."""
    return isinstance(value, str) and re.fullmatch(r"\$\{oc\.env:\s*\w+\s*\}", value) is not None
