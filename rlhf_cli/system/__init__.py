"""Processes, signals, durable files and terminal text. Imports no torch."""
