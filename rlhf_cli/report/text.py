"""Text from data, made safe to show. Imports nothing."""


def printable(text: str) -> str:
    """Replace control characters, ANSI escapes among them, by a visible mark; newlines and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
