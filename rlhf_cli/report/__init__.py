"""The run directory, metrics and what the user sees."""
