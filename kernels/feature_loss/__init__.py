"""Kernels of the feature loss."""
