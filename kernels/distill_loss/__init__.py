"""Triton kernels of the distillation losses."""
