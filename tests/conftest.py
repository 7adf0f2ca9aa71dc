"""What every test runs under."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: its threads sleep while they wait for one another. By default they spin,
# which takes the core from the tests that run beside these (make test has a worker for each core).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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

# Files that take a minute or more, longest first. Workers begin with them, so that none is left to
# run alone at the end.
LONGEST = (
    "gpu/test_cuda_host.py",
    "gpu/test_gpu_kernels.py",
    "arm64/test_arm64.py",
    "ops/distill_loss/test_distill_loss_triton_code.py",
    "training/test_processes.py",
    "training/test_interruption.py",
    "gpu/test_gpu_static.py",
    "test_fuzz.py",
)
# Of these, the ones whose tests share nothing dear: each goes to whichever worker is free. Those
# of every other file stay together, since they share fixtures and what they keep in memory.
SEPARATE = (
    "gpu/test_cuda_host.py",
    "gpu/test_gpu_kernels.py",
    "training/test_processes.py",
    "training/test_interruption.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    ranks = {file: rank for rank, file in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(_file_of(item.nodeid), len(LONGEST)))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole files, of those in ``SEPARATE`` single tests."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = _file_of(nodeid)
            return nodeid if file in SEPARATE else file

    return ByFile(config, log)


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0].removeprefix("tests/")
