"""Kernels that are faster than PyTorch's own on a CPU (docs/performance.md). models/kernels.py selects them."""
