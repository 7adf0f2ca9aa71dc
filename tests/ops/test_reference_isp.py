"""The specification's ISP against code written by others: colour-demosaicing and LibRaw.

LibRaw's white. With highlights clipped, LibRaw divides the white-balance gains by the smallest of
them, so that no channel is ever scaled by less than one and clipped white is white. Ours takes the
gains as they stand (green is 1). The two therefore differ by exactly the factor ``min(gains)``, and
``exposure=1 / min(gains)`` makes them agree; where green has the smallest gain, as in nearly all
daylight, the factor is 1. LibRaw also lowers the white level to the brightest pixel it finds
(``adjust_maximum_thr``); that is switched off here, since a white level is the camera's and not the
picture's.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fetched import colorchart
from hypothesis import given
from hypothesis import strategies as st

from isp_distill.backends.choice import use_backend
from isp_distill.isp.camera import ISP
from isp_distill.ops import reference
from isp_distill.ops.render.call import render
from isp_distill.raw.cfa import PATTERNS, pattern_codes
from isp_distill.raw.dng.writer import write_dng
from isp_distill.raw.image import read_raw

CPU = torch.device("cpu")
CCM = ((1.62, -0.48, -0.14), (-0.21, 1.49, -0.28), (0.02, -0.51, 1.49))


def codes(pattern, batch=1):
    return pattern_codes(pattern, batch, CPU)


# ------------------------------------------------------------------- colour-demosaicing


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("method", "margin"), [("bilinear", 1), ("malvar", 2)])
def test_demosaic_equals_colour_demosaicing(pattern, method, margin):
    peer = pytest.importorskip("colour_demosaicing", reason="a peer")
    function = {
        "bilinear": peer.demosaicing_CFA_Bayer_bilinear,
        "malvar": peer.demosaicing_CFA_Bayer_Malvar2004,
    }[method]
    mosaic = np.random.default_rng(3).random((22, 18))
    ours = reference.demosaic(torch.from_numpy(mosaic)[None], codes(pattern), method)[0]
    theirs = np.moveaxis(function(mosaic, pattern), -1, 0)
    inside = (slice(None), slice(margin, -margin), slice(margin, -margin))
    np.testing.assert_allclose(ours.numpy()[inside], theirs[inside], atol=1e-12)


# ------------------------------------------------------------------- edges


@given(
    st.sampled_from(PATTERNS),
    st.sampled_from(["bilinear", "malvar", "superpixel"]),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_one_colour_stays_one_colour_to_the_edge(pattern, method, height, width):
    """Three very different channels: any swap of colours at an edge would show."""
    colour = torch.tensor([0.9, 0.1, 0.5], dtype=torch.float64)
    planes = colour[[0, 1, 1, 2]].view(1, 4, 1, 1).expand(1, 4, height, width)
    mosaic = reference.unpack(planes, codes(pattern))
    rgb = reference.demosaic(mosaic, codes(pattern), method)
    torch.testing.assert_close(rgb, colour.view(1, 3, 1, 1).expand_as(rgb), atol=1e-12, rtol=0)


@given(st.sampled_from(PATTERNS), st.sampled_from(["bilinear", "malvar"]))
def test_a_site_keeps_its_own_value(pattern, method):
    mosaic = torch.rand(1, 8, 6, dtype=torch.float64)
    rgb = reference.demosaic(mosaic, codes(pattern), method)
    for y in range(8):
        for x in range(6):
            channel = "RGB".index(pattern[2 * (y % 2) + x % 2])
            assert rgb[0, channel, y, x] == mosaic[0, y, x]


@pytest.mark.parametrize("method", ["bilinear", "malvar"])
def test_a_mirrored_margin_equals_the_edge(method):
    """numpy's own reflection of the mosaic, demosaiced and cut back, is the edge's definition."""
    mosaic = np.random.default_rng(4).random((10, 8))
    margin = 4  # an even number, so that the pattern stays
    wide = torch.from_numpy(np.pad(mosaic, margin, mode="reflect"))[None]
    ours = reference.demosaic(torch.from_numpy(mosaic)[None], codes("GRBG"), method)
    theirs = reference.demosaic(wide, codes("GRBG"), method)
    cut = theirs[:, :, margin:-margin, margin:-margin]
    torch.testing.assert_close(ours, cut, atol=1e-12, rtol=0)


@given(st.integers(2, 9), st.integers(-20, 30))
def test_reflect_keeps_the_parity(size, index):
    found = int(reference.reflect(torch.tensor([index]), size)[0])
    assert 0 <= found < size
    assert (found - index) % 2 == 0


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_grey_ramp_survives(pattern):
    """Away from the edges a linear ramp of grey survives any linear demosaicing of gain one."""
    y, x = torch.meshgrid(torch.arange(12).double(), torch.arange(10).double(), indexing="ij")
    ramp = (0.03 * x + 0.02 * y)[None]
    for method, margin in (("bilinear", 1), ("malvar", 2)):
        rgb = reference.demosaic(ramp, codes(pattern), method)[0]
        inside = rgb[:, margin:-margin, margin:-margin]
        expected = ramp[:, margin:-margin, margin:-margin].expand_as(inside)
        torch.testing.assert_close(inside, expected, atol=1e-12, rtol=0)


# ------------------------------------------------------------------- LibRaw

# LibRaw rounds down to 16-bit integers three times: after scaling, after averaging the greens (both
# then grow by a row of the matrix, magnitudes 2.3 here) and after the matrix. Measured: 0.75 steps
# on average and 3.1 at most on the synthetic scenes, 1.04 and 3.6 on the real file.
MEAN_DIFFERENCE = 1.5 / 65535
MAX_DIFFERENCE = 5 / 65535


def libraw(path, **settings):
    """LibRaw's linear sRGB at half size, float [3, h, w]."""
    rawpy = pytest.importorskip("rawpy", reason="LibRaw is what is compared with")
    with rawpy.imread(str(path)) as decoder:
        picture = decoder.postprocess(
            half_size=True,
            gamma=(1, 1),
            no_auto_bright=True,
            use_camera_wb=True,
            output_color=rawpy.ColorSpace.sRGB,
            output_bps=16,
            highlight_mode=rawpy.HighlightMode.Clip,
            user_flip=0,
            adjust_maximum_thr=0.0,
            **settings,
        )
    return np.moveaxis(picture.astype(np.float64), -1, 0) / 65535


def ours(raw, **settings):
    exposure = 1 / min(raw.white_balance)
    isp = ISP.from_raw(
        raw, demosaic="superpixel", tone="linear", orientation=1, exposure=exposure, **settings
    )
    with use_backend("reference"):
        return render(torch.from_numpy(raw.mosaic)[None], isp, dtype=torch.float64)[0].numpy()


def smooth_mosaic(height, width, black, white):
    """Slow waves over the whole range, past white in places, with a little structure at a site."""
    y, x = np.mgrid[0:height, 0:width]
    wave = 0.45 + 0.5 * np.sin(x / 9.0 + 0.3) * np.cos(y / 7.0) + 0.02 * ((x + 2 * y) % 3)
    return np.clip(black + wave * (white - black), 0, white).astype(np.uint16)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("balance", [(2.1, 1.0, 1.6), (0.8, 1.0, 1.9)])
def test_render_equals_libraw_on_a_synthetic_file(tmp_path, pattern, balance):
    pytest.importorskip("rawpy", reason="LibRaw is what is compared with")
    path = write_dng(
        tmp_path / "scene.dng",
        smooth_mosaic(96, 128, 512, 16383),
        pattern=pattern,
        black=512,
        white=16383,
        white_balance=balance,
        ccm=CCM,
    )
    difference = np.abs(ours(read_raw(path)) - libraw(path))
    assert difference.mean() < MEAN_DIFFERENCE
    assert difference.max() < MAX_DIFFERENCE


@pytest.mark.registry
def test_render_equals_libraw_on_a_real_file():
    path = colorchart()
    raw = read_raw(path)
    assert (raw.pattern, raw.black, raw.white) == ("RGGB", (2056.0,) * 4, 15000)
    difference = np.abs(ours(raw) - libraw(path))
    assert difference.mean() < MEAN_DIFFERENCE
    assert difference.max() < MAX_DIFFERENCE
