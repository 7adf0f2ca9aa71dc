"""Runs tests/cuda_host: the CUDA kernels' source on the CPU, in a process of its own under the address
and undefined-behaviour sanitisers.

Ninja builds the modules beside pytest's temporary folders. What this can show, and what it cannot, is
said in csrc/cuda/host.h.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tests" / "cuda_host"
FLAGS = [
    *("-std=c++20", "-O1", "-g1", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Werror"),
    *("-Wno-unused-function", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
]


def preloaded() -> str:
    """The sanitiser's runtime and the C++ library whose exceptions it looks at; "" if missing."""
    if shutil.which("g++") is None:
        return ""
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        done = subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
        found.append(done.stdout.strip())
    return " ".join(found) if all(os.path.isabs(path) for path in found) else ""


def build(name: str, folder: Path) -> None:
    """Compile ``tests/cuda_host/<name>.cpp`` to the module ``<name>_host``."""
    pybind11 = pytest.importorskip("pybind11")
    ninja = pytest.importorskip("ninja")
    includes = [f"-I{ROOT / 'csrc'}"]
    for path in (pybind11.get_include(), sysconfig.get_path("include")):
        includes += ["-isystem", path]
    (folder / "build.ninja").write_text(
        f"flags = {' '.join([*FLAGS, *includes])}\n"
        "rule module\n  command = g++ $flags $in -o $out\n"
        f"build {name}_host.so: module {SOURCES / name}.cpp\n"
    )
    command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.skipif(not preloaded(), reason="g++ and its address sanitiser are not installed")
@pytest.mark.parametrize("name", ["distill_loss", "raw_conv"])
def test_kernels_on_the_cpu(name, tmp_path):
    build(name, tmp_path)
    folders = [str(ROOT), str(ROOT / "tests"), str(SOURCES), str(tmp_path)]
    environment = {
        **os.environ,
        "LD_PRELOAD": preloaded(),
        # Python itself keeps what it has allocated until it ends.
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]),
        "ISP_DISTILL_CUDA_HOST": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, str(SOURCES / f"test_{name}_host.py")],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    print(run.stdout[-20000:], run.stderr[-10000:])
    assert run.returncode == 0, f"{name} failed on the CPU, see its output"
    assert re.search(r"\b[1-9]\d* passed", run.stdout)
