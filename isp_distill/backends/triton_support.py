"""Whether Triton kernels can run here, or one sentence on why they cannot.

Triton compiles for the GPU; with ``TRITON_INTERPRET=1`` in the environment, set before the process
first imports it, its interpreter runs the same kernels on CPU tensors, slowly: that is how they are
tested where there is no GPU. Nothing here imports Triton before a kernel is wanted.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def devices() -> tuple[str, ...]:
    """The device types whose tensors Triton kernels take in this process."""
    return ("cpu", "cuda") if interpreted() else ("cuda",)


def missing() -> str | None:
    """Why no Triton kernel can run here, in one sentence; None where they can."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install triton; Linux only)"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "torch sees no GPU (TRITON_INTERPRET=1 runs the kernels on the CPU, for tests)"
    major, minor = torch.cuda.get_device_capability()
    if torch.version.hip is None and major < 8:
        return f"the kernels need a GPU of sm_80 or later, and this one is sm_{major}{minor}"
    return None
