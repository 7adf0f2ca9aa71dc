"""Calls of ``render`` that every backend's tests draw, and how far from float64 they may be.

Allowed are 3e-5 for the CPU's tone curves (a quarter of half a 12-bit step, which is the bound), a
few float32 roundings for the rest, times 1 / std, and the rounding of the result's own type. Just
above black the gamma and the log curve are steep. What float32 rounds off their argument there, up
to 2.5e-7 behind a colour matrix whose terms cancel, shows as 8e-4 and 1.5e-4 in any float32
computation, the reference's too. test_render_near_black.py goes there; the curves themselves are
held to 6e-6 and 3e-7 by test_tone_curves_at_every_level.
"""

from __future__ import annotations

import functools
import math

import hypothesis.strategies as st
import torch

from isp_distill import ISP, render, use_backend
from isp_distill.isp.camera import DEMOSAICS, TONES

MOSAIC_DTYPES = [
    torch.uint16, torch.uint8, torch.int16, torch.int32, torch.float16, torch.float32,
]  # fmt: skip
OUT_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# Pairs of rows and of columns; vectors hold 4, 8 or 16 pairs of columns.
HEIGHTS = (1, 2, 3, 7, 20, 33)
WIDTHS = (1, 2, 3, 8, 9, 17, 33, 64, 70)
SIZES = (1, 2, 3, 7, 16, 31, 50, 120)
CURVE, ARITHMETIC = 3e-5, 4e-6
ARGUMENT = 2.5e-7
#: Of the tones that are steep just above black: gamma is flat below 1e-8, log's slope is 587.
STEEP = {
    "gamma": (1e-8 + ARGUMENT) ** (1 / 2.2) - 1e-8 ** (1 / 2.2),
    "log": 5000 / math.log1p(5000) * ARGUMENT,
}
#: Half a unit in the last place of 1.
ULP = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
CAMERA = ISP(
    black=(64.0, 60.0, 70.0, 66.0),
    white=1023.0,
    pattern="GRBG",
    white_balance=(1.9, 1.0, 1.5),
    ccm=((1.62, -0.48, -0.14), (-0.21, 1.49, -0.28), (0.02, -0.51, 1.49)),
    exposure=0.8,
)


def mosaics(batch=1, height=64, width=80, dtype=torch.uint16, seed=0, top=1100):
    """Random values from 0 to somewhat beyond the white level."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, top, (batch, height, width), generator=generator).to(dtype)


def both(backend, mosaic, isp, dtype=torch.float32, device="cpu", **call):
    """The picture by a backend, and by the reference in float64."""
    with use_backend(backend):
        picture = render(mosaic.to(device), isp, dtype=dtype, **call).cpu()
    with use_backend("reference"):
        return picture, render(mosaic, isp, dtype=torch.float64, **call)


def assert_within(picture, expected, tolerance, ulp):
    """``ulp``: by dtype, half a unit in the last place of 1, relative to the largest value."""
    assert picture.shape == expected.shape
    error = (picture.double() - expected).abs()
    if error.numel():
        assert error.max().item() <= tolerance + ulp[picture.dtype] * expected.abs().max().item()


def allowed(tone):
    """How far a picture of that tone may be from float64, but for its own type's rounding."""
    return ARITHMETIC + (0.0 if tone == "linear" else STEEP.get(tone, CURVE))


def assert_same(picture, expected, isp, std=1.0):
    """A CPU kernel's picture is the reference's, which is float64."""
    assert_within(picture, expected, allowed(isp.tone) / std, ULP)


@functools.cache
def tone_levels(tone):
    """All 65536 levels, each a period, and the reference's picture of them."""
    levels = torch.arange(65536, dtype=torch.int32).view(1, 256, 256)
    mosaic = levels.repeat_interleave(2, 1).repeat_interleave(2, 2).to(torch.uint16)
    isp = ISP(demosaic="superpixel", tone=tone)
    with use_backend("reference"):
        return mosaic, isp, render(mosaic, isp, dtype=torch.float64)


def tone_bounds(tables):
    """How far each curve alone may be from float64; ``tables``: AVX-512 looks them up."""
    return {
        "linear": 1e-7,
        "srgb": 2.2e-5 if tables else 1.4e-5,
        "gamma": 6e-6 if tables else 2.5e-6,
        "smoothstep": 6e-6 if tables else 3e-6,
        "log": 3e-7,
    }


@st.composite
def calls(draw, heights=HEIGHTS, widths=WIDTHS, sizes=SIZES):
    """A mosaic, its ISP, and what else :func:`render` is called with."""
    seed = draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    batch = draw(st.integers(1, 3))
    height, width = 2 * draw(st.sampled_from(heights)), 2 * draw(st.sampled_from(widths))
    dtype = draw(st.sampled_from(MOSAIC_DTYPES))
    top = 255 if dtype == torch.uint8 else 1100
    mosaic = mosaics(batch, height, width, dtype, seed, top)
    if draw(st.booleans()):  # a window of a larger mosaic, at an odd address
        wide = torch.zeros(batch, height + 2, width + 7, dtype=dtype)
        wide[:, 1:-1, 3:-4] = mosaic
        mosaic = wide[:, 1:-1, 3:-4]
    demosaic = draw(st.sampled_from(DEMOSAICS))
    black = 0.06 * top * torch.rand(batch, 4, generator=generator)
    isp = ISP(
        black=black.round() if draw(st.booleans()) else black,  # cameras' are whole numbers
        white=top * (0.8 + 0.2 * torch.rand(batch, generator=generator)),
        pattern=torch.randint(0, 4, (batch,), generator=generator),
        white_balance=0.5 + 2 * torch.rand(batch, 3, generator=generator),
        ccm=torch.eye(3) + 0.3 * torch.randn(batch, 3, 3, generator=generator),
        exposure=0.5 + torch.rand(batch, generator=generator),
        demosaic=demosaic,
        tone=draw(st.sampled_from(TONES)),
        orientation=draw(st.integers(1, 8)),
    )
    step = 2 if demosaic == "superpixel" else 1
    crop = None
    if draw(st.booleans()):
        box = [step * draw(st.integers(0, side // step - 1)) for side in (height, width)]
        for start, side in zip(tuple(box), (height, width), strict=True):
            box.append(step * draw(st.integers(1, (side - start) // step)))
        crop = tuple(box)
    sides = st.sampled_from(sizes)
    size = draw(st.one_of(st.none(), st.integers(1, 9), st.tuples(sides, sides)))
    call = {
        "size": size,
        "crop": crop,
        "resize_in": draw(st.sampled_from(["display", "linear"])),
        "dtype": draw(st.sampled_from(OUT_DTYPES)),
        "memory_format": draw(st.sampled_from(LAYOUTS)),
    }
    if draw(st.booleans()):
        call |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    return mosaic, isp, call
