"""Pattern codes on a GPU are not checked, since that would make it wait: two bits of them count.

One more bit would have a kernel read rows that are not there. The operators themselves are called:
the public functions check codes on the CPU, where Triton's interpreter runs.
"""

from __future__ import annotations

import pytest
import torch

from isp_distill.ops.raw_conv import call as _raw_conv  # noqa: F401  (registers the backends)
from isp_distill.ops.raw_conv.operator import raw_conv
from isp_distill.ops.render import call as _render  # noqa: F401  (likewise)
from isp_distill.ops.render.operator import render

CODES = torch.arange(4)
MORE = torch.tensor([4, -4, 8 << 20, 12])
MOSAIC = torch.randint(0, 1000, (4, 16, 16), generator=torch.Generator().manual_seed(0))
LEVELS = (torch.tensor([20.0, 24.0, 18.0, 22.0]).expand(4, 4).contiguous(), torch.full((4,), 900.0))
GAIN = torch.tensor([1.5, 1.0, 1.1, 1.7]).expand(4, 4).contiguous()


def convolved(codes, device):
    weight = torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(1)).to(device)
    weight.requires_grad_()
    black, white, gain, mosaic = (t.to(device) for t in (*LEVELS, GAIN, MOSAIC.to(torch.uint16)))
    gain.requires_grad_()
    out = raw_conv(
        mosaic, weight, None, black, white, codes.to(device), gain, None, None, None, None,
        1, [1, 1, 1, 1], True, "linear", "none", torch.float32, False, None, None, "triton",
    )  # fmt: skip
    return out.detach(), *torch.autograd.grad(out.square().sum(), (weight, gain))


def rendered(codes, device, size):
    colour = torch.eye(3).expand(4, 3, 3).contiguous()
    tensors = (MOSAIC.to(torch.uint16), *LEVELS, codes, GAIN, colour, torch.zeros(3), torch.ones(3))
    picture = render(
        *(t.to(device) for t in tensors), None, "malvar", "srgb", 1, [0, 0, 16, 16], [size, size],
        "display", torch.float32, False, None, None, "triton",
    )  # fmt: skip
    return (picture,)


@pytest.mark.parametrize(
    "call", [convolved, lambda *a: rendered(*a, 16), lambda *a: rendered(*a, 7)],
    ids=["raw_conv", "render", "render resized"],
)  # fmt: skip
def test_two_bits_count(device, call):
    for found, expected in zip(call(CODES + MORE, device), call(CODES, device), strict=True):
        assert torch.equal(found, expected)
