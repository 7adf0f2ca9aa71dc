"""Inputs that nobody would write, in numbers: see ``run.py``."""
