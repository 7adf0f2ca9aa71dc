"""render on packed bytes: to the last bit what it makes of the codes, on every instruction set.

The kernels unpack rows, or blocks of them, and go on as with uint16, so nothing may differ.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fuzz.guard_pages import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_cases import WHITE, inside, packed_mosaic, windows
from render_cases import CAMERA, assert_within, calls

from isp_distill import render, use_backend
from isp_distill.backends import cpu_library
from isp_distill.isp.camera import DEMOSAICS
from isp_distill.raw.gain_map import GainMap
from isp_distill.raw.packings import PACKED

built = pytest.mark.skipif(cpu_library.missing() is not None, reason=str(cpu_library.missing()))
SETS = cpu_library.instruction_sets() if cpu_library.missing() is None else []


@pytest.fixture(params=SETS)
def instruction_set(request, monkeypatch):
    monkeypatch.setenv("ISP_DISTILL_CPU", request.param)
    return request.param


@built
@settings(max_examples=100, deadline=None)
@given(calls(), st.sampled_from(PACKED), windows(), st.sampled_from([0.3, 1.0, 1.2]))
def test_the_same_to_the_last_bit(call, packing, window, white):
    mosaic, isp, options = call
    isp = isp.replace(white=white * WHITE[packing])  # from most codes clipped to none
    padding, apart = window
    codes, packed = packed_mosaic(packing, *mosaic.shape, padding, seed=mosaic.shape[2])
    bytes_ = guarded(inside(packed, apart))
    with pytest.MonkeyPatch.context() as patch, use_backend("cpu"):
        for name in SETS:
            patch.setenv("ISP_DISTILL_CPU", name)
            found = render(bytes_, isp, **options, packing=packing, width=mosaic.shape[2])
            assert torch.equal(found, render(codes, isp, **options))


@pytest.mark.parametrize("demosaic", DEMOSAICS)
@pytest.mark.parametrize("packing", PACKED)
def test_reductions_of_many_blocks(packing, demosaic, instruction_set):
    """Columns that begin in the middle of a group, rows that end in one, and several tiles."""
    isp = CAMERA.replace(demosaic=demosaic, white=0.9 * WHITE[packing])
    codes, packed = packed_mosaic(packing, 1, 200, 4406)
    packed = guarded(packed)
    for crop, size in (
        (None, (20, 300)),
        ((2, 2, 198, 4402), (11, 64)),
        ((0, 6, 200, 122), (9, 9)),
    ):
        how = {"crop": crop, "size": size, "resize_in": "linear"}
        with use_backend("cpu"):
            found = render(packed, isp, **how, packing=packing, width=4406)
            assert torch.equal(found, render(codes, isp, **how))


@pytest.mark.parametrize("packing", PACKED)
@built
def test_against_the_reference(packing):
    isp = CAMERA.replace(white=WHITE[packing], tone="linear")
    _, packed = packed_mosaic(packing, 2, 40, 70, padding=3)
    for size in (None, (10, 20)):
        how = {"size": size, "resize_in": "linear", "packing": packing, "width": 70}
        with use_backend("cpu"):
            found = render(packed, isp, **how)
        with use_backend("reference"):
            expected = render(packed, isp, **how, dtype=torch.float64)
        assert_within(found, expected, 4e-6, {torch.float32: 2.0**-23})


def test_a_gain_map_is_applied_to_the_codes():
    codes, packed = packed_mosaic("mipi12", 1, 16, 24)
    isp = CAMERA.replace(
        white=WHITE["mipi12"], gain_map=GainMap(np.ones((4, 2, 3)) * 1.2, 0, 0, 9, 9)
    )
    found = render(packed, isp, size=8, packing="mipi12", width=24)
    assert torch.equal(found, render(codes, isp, size=8))


def test_compiles_and_exports():
    _, packed = packed_mosaic("pfnc12p", 1, 16, 24, padding=2)

    class Picture(torch.nn.Module):
        def forward(self, bytes_):
            return render(bytes_, CAMERA, size=8, packing="pfnc12p", width=24)

    expected = Picture()(packed)
    compiled = torch.compile(Picture(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(packed), expected)
    program = torch.export.export(Picture(), (packed,))
    assert "isp_distill" not in str(program.graph)
    torch.testing.assert_close(program.module()(packed), expected, rtol=1e-4, atol=1e-4)
