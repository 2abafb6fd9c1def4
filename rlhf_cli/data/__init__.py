"""Datasets to token batches."""
