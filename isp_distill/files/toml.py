"""TOML as Python 3.11 reads it; before, its own original, tomli, does."""

import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["tomllib"]
