"""Assembles a run from its configuration, starts it and ends it."""
