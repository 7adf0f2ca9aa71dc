"""render with ``linearise``: to the last bit what it makes of the linear values."""

from __future__ import annotations

import pytest
import torch
from companding_cases import KNOTS_24, bits_of, curves
from fuzz.guard_pages import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_cases import inside, packed_mosaic, windows
from render_cases import CAMERA, assert_within, calls

from isp_distill import render, use_backend
from isp_distill.backends import cpu_library
from isp_distill.isp.camera import DEMOSAICS
from isp_distill.ops.companding import checked_linearise
from isp_distill.ops.reference_companding import linearised
from isp_distill.raw.packings import PACKED

built = pytest.mark.skipif(cpu_library.missing() is not None, reason=str(cpu_library.missing()))
SETS = cpu_library.instruction_sets() if cpu_library.missing() is None else []


def linear(mosaic, curve):
    return linearised(mosaic, checked_linearise(curve, mosaic, None, torch.float32), torch.float32)


@built
@settings(max_examples=100, deadline=None)
@given(calls(), st.data())
def test_the_same_to_the_last_bit(call, data):
    mosaic, isp, options = call
    if mosaic.is_floating_point():
        mosaic = mosaic.to(torch.int32)
    white = float(isp.white.max())
    curve = data.draw(curves(len(mosaic), bits_of(mosaic.dtype), white))
    with pytest.MonkeyPatch.context() as patch, use_backend("cpu"):
        for name in SETS:
            patch.setenv("ISP_DISTILL_CPU", name)
            found = render(mosaic, isp, **options, linearise=curve)
            assert torch.equal(found, render(linear(mosaic, curve), isp, **options))


@built
@settings(max_examples=60, deadline=None)
@given(calls(), st.sampled_from(PACKED), windows(), st.data())
def test_packed_bytes_to_the_last_bit(call, packing, window, data):
    mosaic, isp, options = call
    codes, packed = packed_mosaic(packing, *mosaic.shape, window[0], seed=mosaic.shape[2])
    curve = data.draw(curves(len(mosaic), bits_of(None, packing), float(isp.white.max())))
    bytes_ = guarded(inside(packed, window[1]))
    with pytest.MonkeyPatch.context() as patch, use_backend("cpu"):
        for name in SETS:
            patch.setenv("ISP_DISTILL_CPU", name)
            how = {**options, "packing": packing, "width": mosaic.shape[2], "linearise": curve}
            assert torch.equal(
                render(bytes_, isp, **how), render(linear(codes, curve), isp, **options)
            )


@pytest.mark.parametrize("demosaic", DEMOSAICS)
@pytest.mark.parametrize("resize_in", ["linear", "display"])
@built
def test_24_bits_against_the_reference(demosaic, resize_in):
    isp = CAMERA.replace(black=256.0, white=2.0**23, tone="linear", demosaic=demosaic)
    _, packed = packed_mosaic("mipi12", 2, 40, 70, padding=3)
    for size in (None, (5, 9), (60, 90)):
        how = {"size": size, "resize_in": resize_in, "packing": "mipi12", "width": 70}
        how["linearise"] = KNOTS_24
        with use_backend("cpu"):
            found = render(packed, isp, **how)
        with use_backend("reference"):
            expected = render(packed, isp, **how, dtype=torch.float64)
        assert_within(found, expected, 4e-6, {torch.float32: 2.0**-23})


def test_compiles_and_exports():
    _, packed = packed_mosaic("pfnc12p", 1, 16, 24, padding=2)
    isp = CAMERA.replace(white=2.0**22)

    class Picture(torch.nn.Module):
        def forward(self, bytes_):
            return render(bytes_, isp, size=8, packing="pfnc12p", width=24, linearise=KNOTS_24)

    expected = Picture()(packed)
    compiled = torch.compile(Picture(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(packed), expected)
    program = torch.export.export(Picture(), (packed,))
    assert "isp_distill" not in str(program.graph)
    torch.testing.assert_close(program.module()(packed), expected, rtol=1e-4, atol=1e-4)
