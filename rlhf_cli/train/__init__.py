"""The two trainers."""
