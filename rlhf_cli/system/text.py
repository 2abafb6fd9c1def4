"""Text from data, made safe to show. Imports nothing but the standard library."""

from unicodedata import category

_JOINERS = "\u200c\u200d"  # of Persian and of emoji; other invisible characters may turn a line around


def printable(text: str) -> str:
    """Replace control characters, ANSI escapes among them, by a visible mark; newlines, tabs and all spaces stay."""
    text = text.replace("\r\n", "\n")
    return "".join(char if _is_harmless(char) else "\ufffd" for char in text)


def _is_harmless(char: str) -> bool:
    return char.isprintable() or char in "\n\t" or char in _JOINERS or category(char) == "Zs"


def one_line(text: object, longest: int) -> str:
    """Return a text, or what an error says, as one harmless line of at most so many characters."""
    return printable(" ".join(str(text).split()))[:longest]
