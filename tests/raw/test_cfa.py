"""Patterns, packing and per-sample settings, against the letters of the pattern's own name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isp_distill import ISP, raw_conv, render
from isp_distill.ops import reference
from isp_distill.ops.raw_conv.arguments import checked_mosaic
from isp_distill.raw.cfa import PATTERNS, PLANES, pattern_code, pattern_codes, per_sample

CPU = torch.device("cpu")


def plane_name(pattern: str, y: int, x: int) -> str:
    """R, Gr, Gb or B at a site, read off the pattern's name."""
    row = pattern[2 * (y % 2) : 2 * (y % 2) + 2]
    letter = row[x % 2]
    return letter if letter != "G" else ("Gr" if "R" in row else "Gb")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pack_by_the_letters(pattern):
    mosaic = torch.arange(4 * 6, dtype=torch.int32).reshape(1, 4, 6)
    planes = reference.pack(mosaic, pattern_codes(pattern, 1, CPU))
    assert planes.shape == (1, 4, 2, 3)
    for y in range(4):
        for x in range(6):
            k = PLANES.index(plane_name(pattern, y, x))
            assert planes[0, k, y // 2, x // 2] == mosaic[0, y, x]


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([torch.int32, torch.float32, torch.float64]),
)
def test_unpack_inverts_pack(codes, height, width, dtype):
    mosaic = torch.randint(0, 255, (len(codes), 2 * height, 2 * width)).to(dtype)
    pattern = torch.tensor(codes)
    planes = reference.pack(mosaic, pattern)
    assert torch.equal(reference.unpack(planes, pattern), mosaic)
    alone = [reference.pack(mosaic[i : i + 1], pattern[i : i + 1]) for i in range(len(codes))]
    assert torch.equal(planes, torch.cat(alone))


@pytest.mark.parametrize("shape", [(1, 3, 4), (1, 4, 3), (1, 0, 4), (2, 1, 1)])
def test_odd_sizes_name_the_fix(shape):
    with pytest.raises(ValueError, match=r"even.*crop it"):
        checked_mosaic(torch.zeros(shape))


def test_checked_mosaic_refuses_by_type_and_shape():
    assert checked_mosaic(torch.zeros(2, 1, 4, 6)).shape == (2, 4, 6)
    with pytest.raises(ValueError, match="expected"):
        checked_mosaic(torch.zeros(2, 3, 4, 6))
    with pytest.raises(TypeError, match="int64"):
        checked_mosaic(torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="tensor, not list"):
        checked_mosaic([[0, 1], [2, 3]])
    with pytest.raises(TypeError, match="gradient"):
        checked_mosaic(torch.zeros(1, 4, 4, requires_grad=True))


def test_codes_are_the_site_of_red():
    assert [name.index("R") for name in PATTERNS] == [0, 1, 2, 3]
    assert [pattern_code(name.lower()) for name in PATTERNS] == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", ["RGBG", "", "XTRANS", None, 3.0])
def test_unknown_pattern_names(bad):
    with pytest.raises(ValueError, match="RGGB, GRBG, GBRG, BGGR"):
        pattern_code(bad)


def test_pattern_codes():
    assert pattern_codes("BGGR", 3, CPU).tolist() == [3, 3, 3]
    assert pattern_codes(2, 2, CPU).tolist() == [2, 2]
    assert pattern_codes(["GRBG", "RGGB"], 2, CPU).tolist() == [1, 0]
    assert pattern_codes(torch.tensor([3], dtype=torch.uint8), 2, CPU).tolist() == [3, 3]
    with pytest.raises(ValueError, match="outside 0"):
        pattern_codes(32, 1, CPU)
    with pytest.raises(ValueError, match=r"in 0\.\.31"):
        pattern_codes(torch.tensor([-1, 0]), 2, CPU)
    with pytest.raises(ValueError, match="2 CFA patterns for a batch of 3"):
        pattern_codes(["RGGB", "BGGR"], 3, CPU)
    with pytest.raises(TypeError, match="integers"):
        pattern_codes(torch.tensor([0.0]), 1, CPU)


def test_per_sample():
    assert per_sample(2, 3, (), "white", CPU).tolist() == [2, 2, 2]
    assert per_sample([1, 2, 3], 3, (), "white", CPU).tolist() == [1, 2, 3]
    assert per_sample(5.0, 2, (4,), "black", CPU).tolist() == [[5] * 4] * 2
    # A batch of four and four planes: [4] is one sample's four, as documented.
    assert per_sample([1, 2, 3, 4], 4, (4,), "black", CPU).tolist() == [[1, 2, 3, 4]] * 4
    with pytest.raises(ValueError, match=r"black has shape \[3\]: expected"):
        per_sample([1, 2, 3], 2, (4,), "black", CPU)
    with pytest.raises(ValueError, match=r"white has shape \[2\]: expected a number, \[3\]"):
        per_sample([1, 2], 3, (), "white", CPU)


@pytest.fixture
def torch_defaults():
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def test_levels_do_not_depend_on_the_default_dtype(torch_defaults):
    """bfloat16 holds neither 513 nor 16383."""
    mosaic = torch.arange(500, 500 + 64, dtype=torch.int32).reshape(1, 8, 8)
    weight = torch.ones(1, 4, 1, 1)
    levels = {"black": [511.0, 513.0, 509.0, 515.0], "white": [16383.0]}
    isp = ISP(**levels, white_balance=[2.05, 1.0, 1.71])

    def results():
        return raw_conv(mosaic, weight, clip=False, **levels), render(mosaic, isp)

    expected = results()
    torch.set_default_dtype(torch.bfloat16)
    for value, wanted in zip(results(), expected, strict=True):
        assert torch.equal(value, wanted)


def test_numbers_do_not_depend_on_the_default_device():
    mosaic = torch.full((1, 8, 8), 500, dtype=torch.int32)
    expected = render(mosaic, ISP(black=64.0, white=1023.0))
    with torch.device("meta"):
        value = render(mosaic, ISP(black=64.0, white=1023.0))
        with pytest.raises(ValueError, match="must be below white"):
            render(mosaic, ISP(black=2000.0, white=1023.0))
    assert torch.equal(value, expected)
