"""Assembles a run from its configuration, runs it and ends it."""
