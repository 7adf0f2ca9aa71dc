"""Benchmarks measure the package that is installed."""

from __future__ import annotations

import sys
from pathlib import Path

from installed_package import prefer_built_package

prefer_built_package(Path(__file__).resolve().parent.parent, sys.path)
