"""Which isp_distill is imported where a clone lies beside an installed one.

``python -m pytest`` puts the current folder first on the path. In a clone that is a source tree
without compiled kernels, which would stand before the package that pip installed.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path


def prefer_built_package(clone: Path, path: list[str]) -> str | None:
    """Take an unbuilt clone off the import path where a built package is installed further on.

    Args:
        clone: the folder that holds ``isp_distill`` and ``kernels``.
        path: ``sys.path``, changed in place.

    Returns:
        The folder of the installed package that now comes first, or None: nothing was changed.
    """
    if "isp_distill" in sys.modules or _is_built(clone):
        return None
    others = [entry for entry in path if Path(entry or ".").resolve() != clone.resolve()]
    found = _installed(others)
    if found is None:
        return None
    path[:] = others
    return found


def _is_built(folder: Path) -> bool:
    return any((folder / "isp_distill").glob("_C*.so"))


def _installed(path: Sequence[str]) -> str | None:
    spec = importlib.machinery.PathFinder.find_spec("isp_distill", list(path))
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    return str(folder) if (folder / "kernels").is_dir() else None
