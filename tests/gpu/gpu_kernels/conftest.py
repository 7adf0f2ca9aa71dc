"""The GPU kernels against the reference: on a GPU where there is one, else in an interpreter."""

from __future__ import annotations

import pytest
import torch

from isp_distill.backends import triton_support

if triton_support.interpreted():
    from triton_interpreter import patch_once_a_launch

    patch_once_a_launch()


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
