"""raw_conv of filters beyond Bayer's: they name the colours otherwise, and lie as Bayer's do."""

from __future__ import annotations

import contextlib

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from isp_distill import raw_conv, use_backend


@settings(deadline=None)
@given(st.integers(0, 7), st.lists(st.integers(0, 3), min_size=1, max_size=3), st.booleans())
def test_other_filters_are_convolved_as_bayer(number, first, fast):
    """Their patterns count on from 4, and the two lowest bits say where the planes lie."""
    generator = torch.Generator().manual_seed(number)
    mosaic = torch.randint(0, 1023, (len(first), 8, 12), generator=generator).to(torch.uint16)
    weight = torch.randn(5, 4, 3, 3, generator=generator)
    call = {"black": (60, 61, 62, 63), "white": 1000, "padding": 1}
    codes = torch.tensor(first)
    with contextlib.nullcontext() if fast else use_backend("reference"):
        other = raw_conv(mosaic, weight, pattern=4 * number + codes, **call)
        assert torch.equal(other, raw_conv(mosaic, weight, pattern=codes, **call))


def test_planes_by_hand():
    """Y R / Cy Y: R is at the second site, Y in its row, Y in its column, Cy across."""
    mosaic = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.int32)
    each = torch.eye(4)[:, :, None, None]
    planes = raw_conv(mosaic, each, black=0, white=10, pattern="YRCyY").flatten()
    torch.testing.assert_close(planes, torch.tensor([0.2, 0.1, 0.4, 0.3]))
    # Ir B / R G: of infrared, R is at the third site, G in its row, Ir in its column, B across.
    planes = raw_conv(mosaic, each, black=0, white=10, pattern="IrBRG").flatten()
    torch.testing.assert_close(planes, torch.tensor([0.3, 0.4, 0.1, 0.2]))
    planes = raw_conv(mosaic, each, black=0, white=10, pattern="mono").flatten()
    torch.testing.assert_close(planes, torch.tensor([0.1, 0.2, 0.3, 0.4]))
