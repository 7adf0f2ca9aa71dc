"""``render`` where its tone curves are steepest: a colour that the matrix cancels to nothing.

Drawn mosaics seldom have one, and it is where gamma and log are farthest from float64.
"""

from __future__ import annotations

import pytest
import torch
from render_cases import ARGUMENT, ARITHMETIC, CURVE, STEEP

from isp_distill import ISP, render, use_backend
from isp_distill.backends import cpu_library

SETS = cpu_library.instruction_sets() if cpu_library.missing() is None else []
SIDE = 128


def camera_and_dark_colours(seed):
    """A camera, and superpixels whose red the matrix cancels to within 1e-6 of white."""
    g = torch.Generator().manual_seed(seed)
    saturation = 0.5 + torch.rand(3, 1, generator=g)
    isp = ISP(
        black=(66 * torch.rand(1, 4, generator=g)).round(),
        white=1000.0,
        white_balance=1 + torch.rand(1, 3, generator=g),
        ccm=torch.eye(3) * (1 + 1.5 * saturation) - 0.5 * saturation,
        demosaic="superpixel",
    )
    gain, black = isp.gain(1)[0].double(), torch.as_tensor(isp.black)[0].double()
    red, green, blue = torch.as_tensor(isp.ccm).double()[0]
    light = torch.rand(4, SIDE, SIDE, generator=g, dtype=torch.float64)
    light[2] = light[1]  # one green
    wanted = 2e-6 * torch.rand(SIDE, SIDE, generator=g) - 1e-6
    light[0] = (wanted - green * light[1] - blue * light[3]) / red
    steps = light / gain[:, None, None] * (1000.0 - black)[:, None, None]
    codes = (steps + black[:, None, None]).float()
    return isp, torch.pixel_shuffle(codes[None], 2)[:, 0]


def farthest(isp, mosaic, backend, expected):
    with use_backend(backend):
        return (render(mosaic, isp).double() - expected).abs().max().item()


@pytest.mark.parametrize("tone", STEEP)
@pytest.mark.parametrize("instruction_set", SETS)
def test_the_bounds_hold_where_the_curves_are_steepest(instruction_set, tone, monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_CPU", instruction_set)
    worst = worst_reference = 0.0
    for seed in range(12):
        isp, mosaic = camera_and_dark_colours(seed)
        isp = isp.replace(tone=tone)
        with use_backend("reference"):
            expected = render(mosaic, isp, dtype=torch.float64)
        worst = max(worst, farthest(isp, mosaic, "cpu", expected))
        worst_reference = max(worst_reference, farthest(isp, mosaic, "reference", expected))
    assert worst <= ARITHMETIC + STEEP[tone]
    # The place is reached, and plain PyTorch in float32 is no closer there.
    assert worst > CURVE
    assert worst < 2 * worst_reference


def test_the_slope_at_black_is_what_makes_it(monkeypatch):
    """The same colours without a curve: what is allowed is the argument's rounding."""
    for seed in range(3):
        isp, mosaic = camera_and_dark_colours(seed)
        isp = isp.replace(tone="linear")
        with use_backend("reference"):
            expected = render(mosaic, isp, dtype=torch.float64)
        dark = expected[0, 0] < 1e-5
        assert dark.float().mean() > 0.5
        for name in SETS:
            monkeypatch.setenv("ISP_DISTILL_CPU", name)
            with use_backend("cpu"):
                error = (render(mosaic, isp).double() - expected).abs()[0, 0]
            assert error[dark].max().item() <= ARGUMENT
