"""The embedded demo data (CC0)."""
