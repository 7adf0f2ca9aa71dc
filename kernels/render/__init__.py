"""Triton kernels of ``render``."""
