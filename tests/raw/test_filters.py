"""Colour filters beyond Bayer's: their names, what moves do to them, and what they refuse."""

import json
import re

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from isp_distill import RawImage, SensorFormat, upright, write_dng
from isp_distill.raw import filters, image_json, record_fields
from isp_distill.raw.filters import FILTERS, KNOWN, NAMES, filter_of, number_of
from isp_distill.raw.image import crop
from isp_distill.raw.metadata import IDENTITY, SITE_PLANES
from isp_distill.storage.manifest_schema import FieldError, check_fields

PARTS = re.compile("Cy|Ir|[A-Z]")
THREE = ((1.2, -0.1, -0.1), (-0.2, 1.3, -0.1), (0.1, -0.4, 1.3))
FOUR = ((1.2, -0.1, -0.3, -0.1), (-0.2, 1.3, -0.2, -0.1), (0.1, -0.4, -0.1, 1.3))


def matrix_for(pattern):
    return {3: THREE, 4: FOUR, 1: None}[filter_of(pattern).columns]


def image(pattern, height=6, width=8, **fields):
    """A mosaic of which every value says its row and column."""
    mosaic = np.arange(height * width, dtype=np.uint16).reshape(height, width)
    black = 0 if pattern == "mono" else (1, 2, 3, 4)
    known = {"black": black, "white": 1023, "ccm": matrix_for(pattern)}
    return RawImage(mosaic, pattern, **{**known, **fields})


def colours_of(raw):
    """The colour, the black level and the matrix's columns of every value, by hand."""
    if raw.pattern == "mono":
        return {int(v): "grey" for v in raw.mosaic.ravel()}
    letters = PARTS.findall(raw.pattern)
    found = {}
    for (y, x), value in np.ndenumerate(raw.mosaic):
        site = y % 2 * 2 + x % 2
        plane = SITE_PLANES[raw.pattern][site]
        ccm = np.array(raw.ccm)
        column = plane if ccm.shape[1] == 4 else (0, 1, 1, 2)[plane]
        found[int(value)] = (letters[site], raw.black[plane], tuple(ccm[:, column]))
    return found


def test_every_pattern_is_named_row_by_row():
    """Four orders of each, as a sensor's data sheet draws them."""
    assert [one.patterns for one in FILTERS] == [
        ("RGGB", "GRBG", "GBRG", "BGGR"),
        ("RCCB", "CRBC", "CBRC", "BCCR"),
        ("RCCG", "CRGC", "CGRC", "GCCR"),
        ("RYYB", "YRBY", "YBRY", "BYYR"),
        ("RYYCy", "YRCyY", "YCyRY", "CyYYR"),
        ("RGIrB", "GRBIr", "IrBRG", "BIrGR"),
        ("RIrGB", "IrRBG", "GBRIr", "BGIrR"),
        ("mono",) * 4,
    ]  # fmt: skip
    assert len(set(NAMES)) == len(KNOWN) == 29
    for number, name in enumerate(NAMES[:28]):
        assert number_of(name) == number_of(name.lower()) == number
    assert number_of("mono") == 28


def test_planes_of_a_site_by_hand():
    # YRCyY: Y R / Cy Y. The first colour R is plane 0, the Y in its row 1, the other 2, Cy 3.
    assert SITE_PLANES["YRCyY"] == (1, 0, 3, 2)
    # BGIrR: B G / Ir R: what is in R's row is Ir, in its column G.
    assert filter_of("BGIrR").planes == ("R", "Ir", "G", "B")
    assert SITE_PLANES["BGIrR"] == (3, 2, 1, 0)
    assert SITE_PLANES["mono"] == (0, 1, 2, 3)


@settings(deadline=None)
@given(
    st.sampled_from(KNOWN), st.integers(0, 3), st.integers(0, 3), st.integers(1, 8)
)  # fmt: skip
def test_moves_keep_every_value_its_colour(pattern, top, left, orientation):
    """Cut anywhere and turned in any way, a value has its colour, black level and column."""
    raw = image(pattern, 8, 10, orientation=orientation)
    before = colours_of(raw)
    moved = upright(crop(raw, top, left, 4, 6))
    after = colours_of(moved)
    assert len(after) == 24
    assert after == {value: before[value] for value in after}


@pytest.mark.parametrize("pattern", KNOWN)
def test_fields_survive_json(pattern):
    for raw in (image(pattern), image(pattern, ccm=None)):
        stored = json.loads(json.dumps(image_json.fields_of(raw)))
        again = RawImage(raw.mosaic, **image_json.image_fields(stored))
        for name in ("pattern", "black", "white_balance", "ccm"):
            assert getattr(again, name) == getattr(raw, name), name


def test_only_bayer_and_mono_have_a_matrix_by_default():
    assert image("GRBG", ccm=None).ccm == IDENTITY
    assert image("mono").ccm == ((1.0,), (1.0,), (1.0,))
    for pattern in ("RCCB", "GCCR", "BYYR", "CyYYR", "IrBRG"):
        assert image(pattern, ccm=None).ccm is None


@pytest.mark.parametrize(
    ("pattern", "fields", "message"),
    [
        ("RGBIr", {"ccm": FOUR}, "named row by row.*RGIrB, GRBIr"),
        ("RBGIr", {"ccm": FOUR}, "across from each other, as in RGIrB"),
        ("X-Trans", {}, "X-Trans is not served"),
        ("quad", {}, r"SensorFormat\(block=\)"),
        ("RYYB", {"ccm": FOUR}, r"ccm has shape \[3, 4\], not \[3, 3\], and the pattern is RYYB"),
        ("RGIrB", {"ccm": THREE}, r"ccm has shape \[3, 3\], not \[3, 4\]"),
        ("mono", {"ccm": THREE}, "a mono sensor has no colours: give no ccm"),
        ("mono", {"black": (1, 1, 1, 2)}, "black of a mono sensor is one number"),
        ("mono", {"white_balance": (2, 1, 1)}, "white_balance of a mono sensor is one number"),
    ],
)
def test_what_does_not_go_together_is_refused(pattern, fields, message):
    known = {"black": 0, "white": 1023, **fields}
    with pytest.raises(ValueError, match=message):
        RawImage(np.zeros((4, 4), np.uint16), pattern, **known)


def test_a_dng_of_another_filter_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"kept as \.npy with a sensor\.toml"):
        write_dng(tmp_path / "a.dng", np.zeros((64, 64), np.uint16), pattern="RCCB")


def test_missing_matrix_says_what_to_give():
    said = filters.missing_matrix("YRCyY")
    assert "YRCyY" in said
    assert "(R, Y, Cy) to linear sRGB, ccm of 3 rows with 3 numbers" in said
    assert "(R, G, Ir, B) to linear sRGB, ccm of 3 rows with 4 numbers" in filters.missing_matrix(
        "GRBIr"
    )


@pytest.mark.parametrize(
    ("name", "packing", "bits"),
    [
        ("GREY", "uint8", 8),
        ("Y10", "uint16", 10),
        ("Y12P", "mipi12", 12),
        ("Y14P", "mipi14", 14),
        ("R8", "uint8", 8),
        ("R10_CSI2P", "mipi10", 10),
        ("Mono8", "uint8", 8),
        ("Mono10p", "pfnc10p", 10),
        ("Mono12Packed", "gige12packed", 12),
        ("Mono16", "uint16", 16),
    ],
)
def test_names_of_mono_formats(name, packing, bits):
    form = SensorFormat.named(name, width=8, height=4, black=0)
    assert (form.packing, form.bits, form.pattern) == (packing, bits, "mono")


@pytest.mark.parametrize("name", ["Mono10P", "Y10p", "Mono9", "R10p", "Y", "Mono"])
def test_names_that_there_are_not(name):
    with pytest.raises(ValueError, match="is no format of V4L2, libcamera or GenICam"):
        SensorFormat.named(name, width=8, height=4, black=0)


def test_a_packed_record_of_another_filter_is_checked():
    fields = record_fields.stored_fields(image("IrBRG"))
    check_fields(fields, (6, 8))
    check_fields({**fields, "ccm": None}, (6, 8))
    with pytest.raises(FieldError, match=r"fields\.ccm has rows of another length than 3"):
        check_fields({**fields, "pattern": "RYYB"}, (6, 8))
