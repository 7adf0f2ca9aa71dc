"""The specification of packed mosaics, against the reader of files, and what calls refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_cases import packed_mosaic

from isp_distill import ISP, raw_conv, render, use_backend
from isp_distill.ops.reference_packing import unpacked
from isp_distill.raw.packings import PACKED, packing_number, row_bytes, unpack_rows


@given(
    packing=st.sampled_from(PACKED),
    width=st.integers(1, 40),
    padding=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_the_codes_are_those_of_the_reader(packing, width, padding, seed):
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (2, 3, row_bytes(width, packing) + padding), np.uint8)
    found = unpacked(torch.from_numpy(data), packing, width)
    assert found.dtype == torch.int32
    assert torch.equal(found, torch.from_numpy(unpack_rows(data, width, packing).astype(np.int32)))


def test_what_is_not_packed_comes_back():
    mosaic = torch.zeros(1, 2, 2)
    assert unpacked(mosaic, None, None) is mosaic


def test_the_kernels_number_the_packings_from_one():
    assert packing_number(None) == 0
    assert [packing_number(name) for name in PACKED] == [1, 2, 3, 4, 5, 6]
    assert PACKED == ("mipi10", "mipi12", "mipi14", "pfnc10p", "pfnc12p", "gige12packed")


def convolve(mosaic, **how):
    return raw_conv(mosaic, torch.ones(2, 4, 1, 1), black=0, white=1023, **how)


def picture(mosaic, **how):
    return render(mosaic, ISP(white=1023.0), **how)


BYTES = torch.zeros(1, 4, 10, dtype=torch.uint8)


@pytest.mark.parametrize("call", [convolve, picture])
@pytest.mark.parametrize(
    ("mosaic", "how", "error", "message"),
    [
        (BYTES, {"packing": "mipi11", "width": 8}, ValueError, "unknown packing 'mipi11'.*mipi10"),
        (BYTES, {"packing": "uint16", "width": 4}, ValueError, "unknown packing 'uint16'"),
        (BYTES, {"width": 8}, ValueError, "width=8 goes with packing"),
        (BYTES, {"packing": "mipi10"}, ValueError, "'mipi10' needs width"),
        (BYTES, {"packing": "mipi10", "width": 7}, ValueError, "4 x 7: a Bayer mosaic has an even"),
        (BYTES, {"packing": "mipi10", "width": 0}, ValueError, "4 x 0"),
        (BYTES, {"packing": "mipi10", "width": -2}, ValueError, "4 x -2"),
        (BYTES[:, 1:], {"packing": "mipi10", "width": 8}, ValueError, "3 x 8"),
        (BYTES, {"packing": "mipi10", "width": 8.5}, TypeError, "width must be a whole number"),
        (BYTES, {"packing": "mipi10", "width": 10}, ValueError, "10 bytes: 10 pixels.*take 15"),
        (BYTES.short(), {"packing": "mipi10", "width": 8}, TypeError, "int16.*bytes, uint8"),
        (BYTES[0], {"packing": "mipi10", "width": 8}, ValueError, r"expected \[N, H, bytes\]"),
        ([[1]], {"packing": "mipi10", "width": 8}, TypeError, "must be a tensor, not list"),
    ],
)
def test_refusals(call, mosaic, how, error, message):
    with pytest.raises(error, match=message):
        call(mosaic, **how)


@pytest.mark.parametrize("packing", PACKED)
def test_the_reference_takes_the_bytes_of_one_plane_too(packing):
    codes, packed = packed_mosaic(packing, 2, 6, 10, padding=2)
    for call in (convolve, picture):
        with use_backend("reference"):
            found = call(packed[:, None], packing=packing, width=np.int64(10))
            assert torch.equal(found, call(codes))
