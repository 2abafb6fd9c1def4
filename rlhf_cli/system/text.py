"""Makes text from data safe to print. Imports only the standard library."""

from unicodedata import category

_JOINERS = "\u200c\u200d"  # needed by Persian and emoji; other invisible characters may reverse a line


def printable(text: str) -> str:
    """Replace control characters, including ANSI escapes, with a visible mark; keep newlines, tabs and spaces."""
    text = text.replace("\r\n", "\n")
    return "".join(char if _is_printable(char) else "\ufffd" for char in text)


def _is_printable(char: str) -> bool:
    return char.isprintable() or char in "\n\t" or char in _JOINERS or category(char) == "Zs"


def one_line(text: object, max_length: int) -> str:
    """Return a text, or an error's message, as one printable line of at most `max_length` characters."""
    return printable(" ".join(str(text).split()))[:max_length]
