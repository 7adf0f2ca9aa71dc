"""Builds the host modules of the CUDA kernels and runs its tests under sanitisers.

The kernels' source is compiled for the CPU (csrc/cuda/host.h), with the address and the undefined
behaviour sanitiser on. Those have to be in the process from its beginning, so it is one of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    *("-std=c++20", "-O1", "-g1", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
]


def library(name: str) -> str:
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True)
    return found.stdout.strip()


@pytest.mark.skipif(
    sys.platform != "linux"
    or shutil.which("g++") is None
    or not os.path.isabs(library("libasan.so")),
    reason="needs g++ and its address sanitiser",
)
@pytest.mark.parametrize("name", ["raw_conv", "distill_loss", "distill_upsampled"])
def test_kernels_on_the_cpu(name, tmp_path):
    module = tmp_path / f"{name}_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [f"-I{ROOT / 'csrc'}", f"-isystem{pybind11.get_include()}"]
    includes.append(f"-isystem{sysconfig.get_paths()['include']}")
    source = ROOT / "tests" / "gpu" / "cuda_host" / f"{name}.cpp"
    build = subprocess.run(
        ["g++", *FLAGS, *includes, str(source), "-o", str(module)], capture_output=True, text=True
    )
    assert build.returncode == 0, build.stderr
    folders = [tmp_path, ROOT / "tests" / "cases", ROOT / "tests" / "gpu" / "cuda_host"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so.6')}",
        # Python and torch leave much to the end of the process.
        "ASAN_OPTIONS": "detect_leaks=0",
        "ISP_CUDA_HOST": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5"]
    file = ROOT / "tests" / "gpu" / "cuda_host" / f"test_{name}_host.py"
    run = subprocess.run([*command, str(file)], env=environment, capture_output=True, text=True)
    print(run.stdout[-20000:], run.stderr[-5000:])
    assert run.returncode == 0, "the kernels failed on the CPU, see the output"
    assert re.search(r"\b[1-9]\d* passed", run.stdout)
