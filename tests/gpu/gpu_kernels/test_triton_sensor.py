"""Packed bytes and companded codes in the Triton kernels: as what they stand for, to the last bit.

A kernel unpacks and looks up as it reads a row, and goes on as with whole codes or linear values.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "cases"))

from companding_cases import KNOTS_24, bits_of, curves
from packed_cases import WHITE, inside, packed_mosaic, windows
from raw_conv_cases import Case, assert_close
from render_cases import CAMERA, assert_within, calls

from isp_distill import raw_conv, render, use_backend
from isp_distill.isp.camera import DEMOSAICS
from isp_distill.ops.companding import checked_linearise
from isp_distill.ops.reference_companding import linearised
from isp_distill.raw.packings import PACKED

HERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WHOLE = (torch.uint8, torch.uint16, torch.int16, torch.int32)
# Shrinking an example takes minutes in the interpreter.
FEW = settings(max_examples=2, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
SMALL = calls(heights=(1, 2, 3), widths=(1, 2, 3, 7), sizes=(1, 2, 7))


def linear(mosaic, curve):
    return linearised(mosaic, checked_linearise(curve, mosaic, None, torch.float32), torch.float32)


def convolved(case, mosaic, backend="triton", white=None, **how):
    """The output and all gradients."""
    _, parameters, arguments = case.inputs()
    leaves = [p.to(HERE).detach().requires_grad_() for p in parameters.values()]
    if white is not None:
        arguments["white"] = torch.full((case.batch,), white)
    with use_backend(backend):
        out = raw_conv(
            mosaic.to(HERE), **dict(zip(parameters, leaves, strict=True)), **arguments, **how
        )
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
    gradients = torch.autograd.grad(out, leaves, upstream.to(HERE))
    return [t.detach().cpu() for t in (out, *gradients)]


def check_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


# Packed rows that end in the middle of a group, and kernels of every stride and curve.
CASES = [
    Case(2, 6, 10, 3, 3, 1, (1, 0, 1, 1), mix=True, curve="gamma"),
    Case(1, 8, 14, 2, 2, 2, (0, 1, 0, 0), activation="silu", out_dtype=torch.float16),
    Case(2, 6, 6, 2, 1, 1, (0, 0, 0, 0), curve="log", clip=False, padding_value=True),
]


@pytest.mark.parametrize("packing", PACKED)
def test_packed_raw_conv(packing):
    for seed, case in enumerate(CASES[PACKED.index(packing) % 3 :][:2]):
        codes, packed = packed_mosaic(packing, case.batch, case.height, case.width, seed, seed)
        how = {"packing": packing, "width": case.width, "white": WHITE[packing]}
        found = convolved(case, inside(packed, bool(seed)), **how)
        check_same(found, convolved(case, codes.to(torch.int32), white=WHITE[packing]))


@pytest.mark.parametrize("dtype", WHOLE, ids=str)
@settings(FEW, max_examples=1)
@given(st.data())
def test_companded_raw_conv(dtype, data):
    case = replace(data.draw(st.sampled_from(CASES)), dtype=dtype, cropped=data.draw(st.booleans()))
    mosaic, _, arguments = case.inputs()
    curve = data.draw(curves(case.batch, bits_of(dtype), float(arguments["white"][0])))
    found = convolved(case, mosaic, linearise=curve)
    check_same(found, convolved(case, linear(mosaic, curve)))


@FEW
@given(SMALL, st.data())
def test_packed_and_companded_render(call, data):
    mosaic, isp, options = call
    packing = data.draw(st.sampled_from(PACKED))
    curve = data.draw(curves(len(mosaic), bits_of(None, packing), float(isp.white.max())))
    padding, apart = data.draw(windows())
    codes, packed = packed_mosaic(packing, *mosaic.shape, padding, seed=mosaic.shape[2])
    how = {**options, "packing": packing, "width": mosaic.shape[2], "linearise": curve}
    with use_backend("triton"):
        found = render(inside(packed, apart).to(HERE), isp, **how)
        expected = render(linear(codes, curve).to(HERE), isp, **options)
    # What may be NaN is added up by a selection, so that a GPU does not fuse it.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packing", PACKED)
def test_both_at_once_against_the_reference(packing):
    top = int(WHITE[packing])
    curve = [[0, 0], [top // 4, top // 4], [top // 2, 40 * top], [top, 2**24 - 1]]
    how = {"packing": packing, "linearise": curve}
    case = Case(1, 6, 12, 2, 3, 2, mix=True, activation="silu")
    _, packed = packed_mosaic(packing, 1, 6, 12, padding=3)
    found = convolved(case, packed, white=2.0**22, width=12, **how)
    expected = convolved(case, packed, "reference", white=2.0**22, width=12, **how)
    for ours, theirs, allowed in zip(found, expected, (1e-5, *[1e-3] * 4), strict=False):
        assert_close(ours, theirs, allowed, packing)


@pytest.mark.parametrize("demosaic", DEMOSAICS)
def test_24_bits_render(demosaic):
    isp = CAMERA.replace(black=256.0, white=2.0**23, tone="linear", demosaic=demosaic)
    _, packed = packed_mosaic("mipi12", 1, 4, 10, padding=3)
    for size in (None, (2, 3)):
        how = {"size": size, "packing": "mipi12", "width": 10, "linearise": KNOTS_24}
        with use_backend("triton"):
            found = render(packed.to(HERE), isp, **how).cpu()
        with use_backend("reference"):
            expected = render(packed, isp, **how, dtype=torch.float64)
        assert_within(found, expected, 1e-5, {torch.float32: 2.0**-23})
