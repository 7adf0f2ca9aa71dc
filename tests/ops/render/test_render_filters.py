"""render of filters beyond Bayer's: by hand, against the reference, and what it refuses.

The kernels are compared with the reference in float64 over the calls that every backend's tests
draw, the camera's filter exchanged. Tolerances: see render_cases.py.
"""

from __future__ import annotations

import functools

import hypothesis.strategies as st
import numpy as np
import pytest
import render_cases
import torch
from hypothesis import given, settings
from render_cases import ULP, allowed, assert_within, calls

from isp_distill import ISP, RawImage, render, use_backend
from isp_distill.backends import cpu_library, triton_support
from isp_distill.isp.camera import DEMOSAICS
from isp_distill.raw.filters import FILTERS, filter_of, number_of

SETS = cpu_library.instruction_sets() if cpu_library.missing() is None else []
# Triton's interpreter cuts a float32 to bfloat16 where a GPU rounds.
CUT = {**ULP, torch.bfloat16: 2.0**-7}
PERIOD = torch.tensor(
    [[[100, 300], [500, 900]]], dtype=torch.int32
)  # black 100, white 1100: 0, 0.2, 0.4, 0.8


def seen(pattern, ccm, demosaic="superpixel", mosaic=PERIOD, **settings):
    isp = ISP(
        black=100,
        white=1100,
        pattern=pattern,
        ccm=ccm,
        demosaic=demosaic,
        tone="linear",
        **settings,
    )
    with use_backend("reference"):
        return render(mosaic, isp)[0]


# Of the period 0, 0.2 / 0.4, 0.8: first colour, its row's, its column's, the last.
MATRIX = ((1.0, 0.5, 0.0), (0.0, 1.0, 0.0), (-0.5, 1.0, 0.5))


@pytest.mark.parametrize(
    ("pattern", "planes"),
    [
        ("RCCB", (0.0, 0.3, 0.8)),
        ("CRGC", (0.2, 0.4, 0.4)),  # C R / G C: R 0.2, the C 0 and 0.8, G 0.4
        ("YBRY", (0.4, 0.4, 0.2)),  # Y B / R Y
        ("CyYYR", (0.8, 0.3, 0.0)),  # Cy Y / Y R
    ],
)
def test_doubled_colours_by_hand(pattern, planes):
    first, doubled, last = planes
    expected = [first + doubled / 2, doubled, -first / 2 + doubled + last / 2]
    found = seen(pattern, MATRIX).flatten()
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=1e-6)


def test_infrared_by_hand():
    """Infrared leaks into every colour; the matrix takes it out again."""
    matrix = ((1, 0, -0.25, 0), (0, 1, -0.5, 0), (0, 0, -0.25, 1))
    # R G / Ir B: 0, 0.2, 0.4, 0.8.
    found = seen("RGIrB", matrix).flatten()
    np.testing.assert_allclose(found, [0, 0, 0.7], atol=1e-6)
    # B Ir / G R: B 0, Ir 0.2, G 0.4, R 0.8.
    found = seen("BIrGR", matrix).flatten()
    np.testing.assert_allclose(found, [0.75, 0.3, 0], atol=1e-6)
    # B G / Ir R: in R's row is Ir 0.4, in its column G 0.2; so is the order of the matrix.
    turned = ((1, -0.25, 0, 0), (0, -0.5, 1, 0), (0, -0.25, 0, 1))
    found = seen("BGIrR", turned).flatten()
    np.testing.assert_allclose(found, [0.7, 0, 0], atol=1e-6)


def test_mono_by_hand():
    found = seen("mono", None)
    np.testing.assert_allclose(found.flatten(), [0.35] * 3, atol=1e-6)
    for demosaic in ("bilinear", "malvar"):
        found = seen("mono", None, demosaic)
        assert found.shape == (3, 2, 2)
        for channel in found:
            np.testing.assert_allclose(channel, [[0, 0.2], [0.4, 0.8]], atol=1e-6)


def test_mono_has_one_gain():
    """Red and blue gains, of the camera or drawn, would tell its sites apart."""
    plain = seen("mono", None, "bilinear", white_balance=(1.0, 0.5, 1.0))
    assert torch.equal(plain, seen("mono", None, "bilinear", white_balance=(2.0, 0.5, 3.0)))
    np.testing.assert_allclose(plain[0], [[0, 0.1], [0.2, 0.4]], atol=1e-6)


@pytest.mark.parametrize("demosaic", DEMOSAICS)
@pytest.mark.parametrize("name", ["RCCB", "RCCG", "RYYB", "RYYCy"])
def test_a_doubled_colour_is_demosaiced_as_green(name, demosaic):
    """Such a filter only names the colours otherwise."""
    isp = render_cases.CAMERA.replace(demosaic=demosaic)
    mosaic = render_cases.mosaics(2, 12, 16)
    for first, pattern in enumerate(filter_of(name).patterns):
        bayer = ("RGGB", "GRBG", "GBRG", "BGGR")[first]
        other = render(mosaic, isp.replace(pattern=pattern))
        assert torch.equal(other, render(mosaic, isp.replace(pattern=bayer)))


def test_one_batch_mixes_filters_and_matrices():
    """RYYB among RGGB, each with its own matrix; and RGB with infrared, which makes all of four."""
    mosaic = render_cases.mosaics(3, 8, 8)
    patterns = ["RGGB", "YRBY", "IrBRG"]
    four = ((1.2, -0.1, -0.3, -0.1), (-0.2, 1.3, -0.2, -0.1), (0.1, -0.4, -0.1, 1.3))
    matrices = [render_cases.CAMERA.ccm, MATRIX, four]
    raws = [
        RawImage(m.numpy(), p, 64, 1023, ccm=c)
        for m, p, c in zip(mosaic, patterns, matrices, strict=True)
    ]
    for chosen in (raws[:2], raws):
        isp = ISP.from_raw(chosen, demosaic="superpixel")
        together = render(mosaic[: len(chosen)], isp)
        for one, picture in zip(chosen, together, strict=True):
            alone = ISP.from_raw(one, demosaic="superpixel")
            apart = render(torch.from_numpy(one.mosaic)[None], alone)[0]
            torch.testing.assert_close(picture, apart, atol=2e-6, rtol=0)
    with pytest.raises(ValueError, match="mono sensor and of colour filters: train and render"):
        ISP.from_raw([raws[0], RawImage(mosaic[0].numpy(), "mono", 64, 1023)])


@pytest.mark.parametrize(
    ("pattern", "settings", "message"),
    [
        ("YRBY", {}, r"filter is YRBY.*colour matrix from \(R, Y, B\) to linear sRGB"),
        (["RGGB", "RCCG"], {}, r"filter is RCCG.*3 rows with 3 numbers"),
        (torch.tensor([0, 21]), {}, r"filter is GRBIr.*3 rows with 4 numbers"),
        ("RYYB", {"ccm": torch.ones(3, 4)}, None),
        ("RGIrB", {"ccm": MATRIX}, "ccm has 3 columns, and the pattern RGIrB takes 4"),
        ("mono", {"ccm": MATRIX}, "ccm has 3 columns, and the pattern mono takes 1"),
        ("RGIrB", {"ccm": torch.ones(3, 4), "demosaic": "malvar"}, 'use demosaic="superpixel"'),
        ("RGIrB", {"ccm": torch.ones(3, 4), "demosaic": "bilinear"}, 'use demosaic="superpixel"'),
    ],
)
def test_what_cannot_be_rendered_says_what_to_do(pattern, settings, message):
    isp = {"demosaic": "superpixel", **settings}
    mosaic = torch.zeros(2, 4, 4)
    if message is None:  # three colours said with four
        assert render(mosaic, ISP(pattern=pattern, **isp)).shape == (2, 3, 2, 2)
        return
    with pytest.raises(ValueError, match=message):
        render(mosaic, ISP(pattern=pattern, **isp))


def test_a_default_matrix_is_of_its_own_pattern():
    """An ISP, or an image, that is given another pattern does not keep Bayer's identity."""
    assert ISP().replace(pattern="RYYB").colours is None
    assert ISP().replace(pattern="mono").colours == 1
    assert ISP(pattern="RYYB").replace(pattern="GRBG").colours == 3
    assert ISP(pattern="RYYB").to("meta").colours is None
    assert ISP(pattern="RYYB").batched(2).replace(tone="gamma").colours is None


@st.composite
def filtered_calls(draw):
    """A drawn call whose camera has a filter of four colours, or is mono."""
    mosaic, isp, call = draw(calls())
    batch = len(mosaic)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    first = torch.randint(0, 4, (batch,), generator=generator)
    if isp.demosaic == "superpixel" and draw(st.booleans()):
        name = draw(st.sampled_from(["RGIrB", "RIrGB"]))
        ccm = torch.eye(3)[:, [0, 1, 1, 2]] * 0.7 + 0.2 * torch.randn(
            batch, 3, 4, generator=generator
        )
        return mosaic, isp.replace(pattern=number_of(name) + first, ccm=ccm), call
    black = torch.as_tensor(isp.black)[:, :1].expand(batch, 4)
    ccm = 0.5 + torch.rand(batch, 3, 1, generator=generator)
    return mosaic, isp.replace(pattern=number_of("mono") + first, black=black, ccm=ccm), call


def compared(backend, drawn):
    mosaic, isp, call = drawn
    picture, expected = render_cases.both(backend, mosaic, isp, **call)
    std = min(call.get("std", (1.0,)))
    assert_within(picture, expected, allowed(isp.tone) / std, CUT if backend == "triton" else ULP)


@pytest.mark.skipif(cpu_library.missing() is not None, reason=str(cpu_library.missing()))
@settings(max_examples=150, deadline=None)
@given(filtered_calls())
def test_cpu_is_the_reference(drawn):
    with pytest.MonkeyPatch.context() as patch:
        for name in SETS:
            patch.setenv("ISP_DISTILL_CPU", name)
            compared("cpu", drawn)


@pytest.mark.skipif(cpu_library.missing() is not None, reason=str(cpu_library.missing()))
@pytest.mark.parametrize("pattern", ["mono", "GRBIr"])
@pytest.mark.parametrize("resize_in", ["display", "linear"])
@pytest.mark.parametrize("size", [None, (31, 40), (700, 900)])
def test_cpu_on_a_large_frame(pattern, resize_in, size):
    """Large enough for the sums of segments, and for several tiles."""
    isp = render_cases.CAMERA.replace(pattern=pattern, black=64.0, demosaic="superpixel")
    matrix = torch.eye(3)[:, [0, 1, 1, 2]] - 0.1
    isp = isp.replace(ccm=None if pattern == "mono" else matrix)
    mosaic = render_cases.mosaics(1, 400, 600)
    for demosaic in DEMOSAICS if pattern == "mono" else ("superpixel",):
        call = {"size": size, "resize_in": resize_in}
        drawn = mosaic, isp.replace(demosaic=demosaic), call
        for name in SETS:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ISP_DISTILL_CPU", name)
                compared("cpu", drawn)


@pytest.mark.skipif(triton_support.missing() is not None, reason=str(triton_support.missing()))
@settings(max_examples=10, deadline=None)
@given(filtered_calls())
def test_triton_is_the_reference(drawn):
    compared("triton", drawn)


def test_compiled_whole():
    """One graph, with mono's and infrared's matrices as with Bayer's."""
    mosaic = render_cases.mosaics(1, 16, 16)
    for pattern, ccm in (("mono", None), ("RGIrB", torch.ones(3, 4) / 4), ("RYYB", MATRIX)):
        isp = ISP(black=64, white=1023, pattern=pattern, ccm=ccm, demosaic="superpixel")
        call = functools.partial(render, isp=isp.batched(1), size=(5, 5))
        torch._dynamo.reset()
        compiled = torch.compile(lambda m, call=call: call(m), fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(mosaic), call(mosaic))


def test_every_filter_is_rendered_here():
    """A filter that is added to the table is to be added to these tests."""
    assert [one.name for one in FILTERS] == [
        "RGGB", "RCCB", "RCCG", "RYYB", "RYYCy", "RGBIr", "RGBIr", "mono",
    ]  # fmt: skip
