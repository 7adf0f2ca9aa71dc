"""Runs tests/gpu/gpu_kernels where there is no GPU: in processes that interpret Triton's kernels.

Triton decides when it is imported whether its kernels are interpreted, and the rest of the suite
wants them compiled, so each file has a process of its own. On a machine with a GPU pytest collects
tests/gpu/gpu_kernels itself (see conftest.py) and there is nothing to do here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "gpu_kernels"


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/gpu_kernels ran on the GPU itself")
@pytest.mark.parametrize("file", sorted(p.name for p in FOLDER.glob("test_*.py")))
def test_kernels_in_the_interpreter(file):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(run.stdout[-20000:], run.stderr[-2000:])
    assert run.returncode == 0, f"{file} failed in the interpreter, see its output"
    assert re.search(r"\b[1-9]\d* passed", run.stdout)
