"""Text from data, made safe to show. Imports nothing."""


def printable(text: str) -> str:
    """Replace control characters, ANSI escapes among them, by a visible mark; newlines and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def one_line(text: object, longest: int) -> str:
    """Return a text, or what an error says, as one harmless line of at most so many characters."""
    return printable(" ".join(str(text).split()))[:longest]
