"""Triton kernels of ``unprocess`` and ``expose``."""
