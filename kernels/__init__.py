"""Triton kernels, a folder for each operation."""
