"""``python -m pytest`` in a clone: the installed package is measured, not the unbuilt sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
sys.path[:0] = [{benchmarks!r}]
sys.path[:0] = ["", {site!r}]
from pathlib import Path
from installed_package import prefer_built_package
prefer_built_package(Path({clone!r}), sys.path)
import isp_distill
print(isp_distill.place)
"""


def package(folder, place, built):
    (folder / "isp_distill").mkdir(parents=True)
    (folder / "isp_distill" / "__init__.py").write_text(f"place = {place!r}\n")
    if built:
        (folder / "isp_distill" / "_C.abi3.so").touch()
    return folder


@pytest.mark.parametrize(
    ("clone_built", "installed", "expected"),
    [(False, True, "site"), (True, True, "clone"), (False, False, "clone")],
)
def test_an_unbuilt_clone_stands_back(tmp_path, clone_built, installed, expected):
    clone = package(tmp_path / "clone", "clone", clone_built)
    site = tmp_path / "site"
    if installed:
        package(site, "site", True)
        (site / "isp_distill" / "kernels").mkdir()
    benchmarks = Path(__file__).resolve().parent.parent / "benchmarks"
    program = PROGRAM.format(benchmarks=str(benchmarks), site=str(site), clone=str(clone))
    ran = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=clone, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == expected
