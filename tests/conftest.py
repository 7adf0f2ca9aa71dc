"""What every test runs under."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from hypothesis import settings
from installed_package import prefer_built_package

prefer_built_package(Path(__file__).resolve().parent.parent, sys.path)

# They need a GPU or Triton's interpreter; without either, test_gpu_kernels.py runs them.
collect_ignore = (
    []
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
    else ["gpu/gpu_kernels"]
)
# The CUDA kernels on the CPU: test_cuda_host.py builds them and runs these tests.
if os.environ.get("ISP_CUDA_HOST") != "1":
    collect_ignore.append("gpu/cuda_host")

# The first example of a property pays for imports and compilation, so a deadline would only measure
# that. On a build server the examples are the same in every run: a failure there is a real change.
settings.register_profile(
    "isp-distill", deadline=None, max_examples=25, derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("isp-distill")

# The tests' tensors are small: more threads than this only wait for one another.
torch.set_num_threads(min(2, torch.get_num_threads()))
