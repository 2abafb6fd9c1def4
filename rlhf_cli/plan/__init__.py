"""Estimates of a run before it starts: memory, disk space and the arithmetic of its batches."""
