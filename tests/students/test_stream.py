"""A stream says of each frame what ``predict`` says, and keeps nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_run import teacher

import isp_distill
from isp_distill.raw.packings import pack_rows

SIDES = (96, 128)


def form(packing="uint16", **changes):
    given = {"bits": 12} if packing == "uint16" else {}
    return isp_distill.SensorFormat(
        SIDES[1], SIDES[0], packing, "GRBG", black=64, white_balance=(2.0, 1.0, 1.5),
        **{**given, **changes},
    )  # fmt: skip


def codes(seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(40, 1023, SIDES).astype(np.uint16)


def student():
    torch.manual_seed(0)
    return isp_distill.rawify(teacher().model, curve="gamma", colour_matrix=True)


@pytest.mark.parametrize(("crop", "binning"), [(64, 1), (32, None), (32, 2), (96, 1)])
@pytest.mark.parametrize("packing", ["uint16", "mipi10", "mipi12", "pfnc12p"])
def test_equals_the_view_of_evaluation(packing, crop, binning):
    made, shape = student(), form(packing)
    stream = isp_distill.Stream(made, shape, crop=crop, binning=binning)
    for seed in range(3):
        frame = codes(seed)
        view = isp_distill.View(crop, binning)
        with torch.no_grad():
            expected = made(*isp_distill.cut_view(shape.image(frame), view))
        rows = frame.view(np.uint8) if packing == "uint16" else pack_rows(frame, packing)
        for given in (frame, rows, rows.tobytes(), memoryview(rows.tobytes())):
            assert torch.allclose(stream(given), expected, atol=1e-5)
        assert torch.allclose(stream(torch.from_numpy(rows.copy())), expected, atol=1e-5)


def test_padding_quad_bayer_and_dlpack():
    made, shape = student().eval(), form("mipi12", stride=200)
    rows = np.full((SIDES[0], 200), 255, np.uint8)
    rows[:, :192] = pack_rows(codes(), "mipi12")
    with torch.no_grad():
        expected = made(*isp_distill.cut_view(shape.image(codes()), isp_distill.View(64)))
    assert torch.allclose(isp_distill.Stream(made, shape, crop=64)(rows), expected, atol=1e-5)
    quad = form(block=2)
    with torch.no_grad():
        expected = made(*isp_distill.cut_view(quad.image(codes()), isp_distill.View(32)))

    class Exported:
        def __dlpack__(self, **options):
            return codes().view(np.int16).__dlpack__(**options)

        def __dlpack_device__(self):
            return (1, 0)

    stream = isp_distill.Stream(made, quad, crop=32)
    assert torch.allclose(stream(codes()), expected, atol=1e-5)
    with pytest.raises(ValueError, match="got int16"):
        stream(Exported())


def test_the_drivers_memory_is_read_and_not_kept():
    """The same buffer, filled anew: nothing of the frame before is left."""
    made, buffer = student(), codes(1)
    stream = isp_distill.Stream(made, form(), crop=64)
    first = stream(buffer).clone()
    buffer[:] = codes(2)
    second = stream(buffer).clone()
    buffer[:] = codes(1)
    assert torch.equal(stream(buffer), first)
    assert not torch.equal(first, second)
    seen = stream._seen(stream._pixels(buffer))
    assert np.shares_memory(seen, buffer)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("packing", ["uint16", "mipi10"])
@pytest.mark.parametrize("crop", [64, 32])
def test_nothing_grows(packing, crop):
    stream = isp_distill.Stream(student(), form(packing), crop=crop)
    rows = codes() if packing == "uint16" else pack_rows(codes(), packing)
    pages = []
    for _ in range(4):
        for _ in range(100):
            stream(rows)
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
    # A frame of 24 kB that was kept would be 600 pages in a hundred calls.
    assert pages[-1] - pages[1] < 60, pages


def test_what_is_refused():
    stream = isp_distill.Stream(student(), form("mipi10"), crop=64)
    with pytest.raises(ValueError, match=r"uint8 of 15360 bytes, or codes uint16 \[96, 128\]"):
        stream(np.zeros(100, np.uint8))
    with pytest.raises(TypeError, match="a frame is bytes"):
        stream(3.5)
    with pytest.raises(ValueError, match="never trained: give crop"):
        isp_distill.Stream(student(), form())
    with pytest.raises(ValueError, match="orientation is 6"):
        isp_distill.Stream(student(), form(orientation=6), crop=64)
    with pytest.raises(isp_distill.RawError, match="too small"):
        isp_distill.Stream(student(), form(), crop=128)
    with pytest.raises(TypeError, match="must be a module"):
        isp_distill.Stream(str, form(), crop=64)
