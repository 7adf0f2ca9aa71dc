"""render's Triton kernels against the specification, computed in float64.

What is allowed: a few float32 roundings and those of log2 and exp2, times 1 / std, and the rounding
of the result's own type. Just above black the gamma curve is so steep that the roundings of its
argument show: up to 6e-4 there, as on the CPU.
"""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from isp_distill import ISP, BackendError, render, triton_support, use_backend
from isp_distill.isp import DEMOSAICS, TONES

DTYPES = [torch.uint16, torch.uint8, torch.int16, torch.int32, torch.float16, torch.float32]
OUT_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
CAMERA = ISP(
    black=(64.0, 60.0, 70.0, 66.0),
    white=1023.0,
    pattern="GRBG",
    white_balance=(1.9, 1.0, 1.5),
    ccm=((1.62, -0.48, -0.14), (-0.21, 1.49, -0.28), (0.02, -0.51, 1.49)),
    exposure=0.8,
)


def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mosaics(batch=1, height=24, width=28, dtype=torch.uint16, seed=0, top=1100):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, top, (batch, height, width), generator=generator).to(dtype)


def both(mosaic, isp, dtype=torch.float32, **call):
    """The picture by the kernels, and by the reference in float64."""
    with use_backend("triton"):
        picture = render(mosaic.to(device()), isp, dtype=dtype, **call).cpu()
    with use_backend("reference"):
        return picture, render(mosaic, isp, dtype=torch.float64, **call)


def assert_same(picture, expected, isp, std=1.0):
    assert picture.shape == expected.shape
    tolerance = (6e-4 if isp.tone == "gamma" else 1e-5) / std
    ulp = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
    tolerance += ulp[picture.dtype] * expected.abs().max().item()
    assert (picture.double() - expected).abs().max().item() <= tolerance


@st.composite
def calls(draw):
    seed = draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    batch = draw(st.integers(1, 3))
    height = 2 * draw(st.sampled_from([1, 2, 3, 7, 11, 20]))
    width = 2 * draw(st.sampled_from([1, 2, 3, 8, 17, 40]))
    dtype = draw(st.sampled_from(DTYPES))
    top = 255 if dtype == torch.uint8 else 1100
    mosaic = mosaics(batch, height, width, dtype, seed, top)
    if draw(st.booleans()):  # a window of a larger mosaic, at an odd column: no pairs there
        wide = torch.zeros(batch, height + 2, width + 7, dtype=dtype)
        wide[:, 1:-1, 3:-4] = mosaic
        mosaic = wide[:, 1:-1, 3:-4]
    demosaic = draw(st.sampled_from(DEMOSAICS))
    isp = ISP(
        black=0.06 * top * torch.rand(batch, 4, generator=generator),
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
    sides = st.sampled_from([1, 2, 3, 7, 16, 31, 50])
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


@given(calls())
@settings(max_examples=60, deadline=None)
def test_equals_the_reference(call):
    mosaic, isp, options = call
    picture, expected = both(mosaic, isp, **options)
    assert picture.dtype == options["dtype"]
    assert picture.is_contiguous(memory_format=options["memory_format"])
    assert_same(picture, expected, isp, 0.2 if "std" in options else 1.0)
