"""What demos, benchmarks and examples import of the package is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(
    path for name in ("demo", "benchmarks", "examples") for path in (ROOT / name).glob("*.py")
)


def names_of(script):
    """Every (module, name) that a script imports from the package, wherever it does so."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "isp_distill":
            yield from ((node.module, one.name) for one in node.names)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imported_names_exist(script):
    for module, name in names_of(script):
        found = importlib.import_module(module)
        if not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")


def test_there_are_scripts():
    assert len(SCRIPTS) > 40
    assert any(True for script in SCRIPTS for _ in names_of(script))
