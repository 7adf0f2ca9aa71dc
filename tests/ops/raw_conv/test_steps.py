"""Strides and padding that no convolution has: refused before a kernel's sums overflow."""

from __future__ import annotations

import pytest
import torch

from isp_distill import raw_conv


@pytest.mark.parametrize("name", ["stride", "padding"])
@pytest.mark.parametrize("value", [65536, 2**31, 2**56, 2**58 + 1, 2**60, 2**63 - 1])
def test_steps_that_overflow_are_refused(name, value):
    mosaic = torch.full((1, 16, 16), 500, dtype=torch.int16)
    weight = torch.ones(2, 4, 3, 3)
    with pytest.raises(ValueError, match=rf"{name} must be (between 1 and|at most) 65535, got"):
        raw_conv(mosaic, weight, black=0.0, white=1000.0, **{name: value})


def test_a_stride_beyond_the_picture_takes_its_first_place():
    mosaic = torch.full((1, 16, 16), 500, dtype=torch.int16)
    weight = torch.ones(2, 4, 3, 3, requires_grad=True)
    y = raw_conv(mosaic, weight, black=0.0, white=1000.0, stride=65535)
    torch.testing.assert_close(y, torch.full((1, 2, 1, 1), 18.0))
    y.sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((2, 4, 3, 3), 0.5))
