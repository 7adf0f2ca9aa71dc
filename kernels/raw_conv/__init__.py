"""Triton kernels of ``raw_conv``."""
