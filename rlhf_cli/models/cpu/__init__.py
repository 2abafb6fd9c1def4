"""Kernels for CPUs, where they are faster than torch's own; not used on GPUs."""
