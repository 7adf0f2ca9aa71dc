"""What a RawImage may be made of: numbers widened, wrong values refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from isp_distill.raw.image import RawImage

MOSAIC = np.arange(24, dtype=np.uint16).reshape(4, 6)


def image(**change):
    return RawImage(**{"mosaic": MOSAIC, "pattern": "RGGB", "black": 0, "white": 100, **change})


def test_numbers_are_widened():
    raw = image(black=np.int64(3), white=np.float32(99.5), white_balance=1, iso=np.uint16(200))
    assert raw.black == (3.0,) * 4
    assert raw.white_balance == (1.0,) * 3
    assert (raw.white, raw.iso) == (99.5, 200.0)
    numbers = (*raw.black, raw.white, *raw.white_balance, raw.iso, raw.baseline_exposure)
    assert {type(v) for v in numbers} == {float}
    np.testing.assert_array_equal(raw.black_per_site, np.full((2, 2), 3))


def test_lists_and_arrays_become_tuples():
    raw = image(
        black=[1, 2, 3, 4],
        white_balance=np.array([2, 1, 1.5]),
        ccm=np.eye(3, dtype=np.float32),
        orientation=np.int8(6),
        default_crop=np.array([0, 0, 2, 4]),
        path=Path("x.dng"),
    )
    assert raw.black == (1.0, 2.0, 3.0, 4.0)
    assert raw.white_balance == (2.0, 1.0, 1.5)
    assert raw.ccm == ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    assert raw.default_crop == (0, 0, 2, 4)
    assert (raw.orientation, type(raw.orientation), raw.path) == (6, int, "x.dng")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"black": (0, 0)}, "black has shape"),
        ({"black": float("nan")}, "black must be finite"),
        ({"black": (0, 0, 0, 100)}, "white 100 must be above every black"),
        ({"black": "64"}, "black must be one level or four"),
        ({"black": None}, "black must be one level or four"),
        ({"white": 0}, "white 0 must be above every black"),
        ({"white": float("inf")}, "white must be finite"),
        ({"white": (1, 2)}, "white has shape"),
        ({"white_balance": (1, 1, 1, 1)}, "white_balance has shape"),
        ({"white_balance": (1, 1, 0)}, "white_balance gains must be positive"),
        ({"white_balance": (1, float("nan"), 1)}, "white_balance must be finite"),
        ({"ccm": np.eye(4)}, "ccm has shape"),
        ({"ccm": 1.0}, "ccm has shape"),
        ({"ccm": np.full((3, 3), np.inf)}, "ccm has values that are not finite"),
        ({"ccm": "none"}, "ccm must be 3x3"),
        ({"pattern": "RGBG"}, "pattern"),
        ({"orientation": 9}, "orientation"),
        ({"orientation": 1.5}, "orientation"),
        ({"exposure_time": 0}, "exposure_time must be positive"),
        ({"iso": float("nan")}, "iso must be finite"),
        ({"default_crop": (0, 0, 4)}, "default_crop must be 4 integers"),
        ({"baseline_exposure": float("nan")}, "baseline_exposure must be finite"),
    ],
)
def test_fields_are_refused_by_name(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        image(**change)


@pytest.mark.parametrize(
    "mosaic",
    [
        np.repeat(MOSAIC, 2, axis=1)[:, ::2],
        np.asfortranarray(MOSAIC),
        MOSAIC.astype(">u2"),
        MOSAIC.astype(np.uint8),
    ],
)
def test_mosaics_that_lose_nothing_are_converted(mosaic):
    raw = image(mosaic=mosaic)
    assert raw.mosaic.flags.c_contiguous
    assert raw.mosaic.dtype == np.dtype(np.uint16)
    np.testing.assert_array_equal(raw.mosaic, MOSAIC)


def test_a_good_mosaic_is_not_copied():
    assert image().mosaic is MOSAIC


@pytest.mark.parametrize(
    ("mosaic", "message"),
    [
        (np.full((4, 4), 0.5, np.float32), "float32.*scale.*round"),
        (np.full((4, 4), 70_000, np.uint32), "up to 70000, which would wrap"),
        (np.full((4, 4), -3, np.int32), "down to -3, which would wrap"),
        (np.full((4, 4), 4095, np.uint32), "4095 to 4095, fit: use mosaic.astype"),
        (np.zeros((4, 4), bool), "bool, not uint16"),
        (np.zeros((4, 4), complex), "complex128, not uint16"),
        (np.zeros((5, 4), np.uint16), r"even, not 5x4; cut .* mosaic\[:4, :4\]"),
        (np.zeros((4, 4, 3), np.uint16), "picture, not a mosaic"),
        (np.zeros((0, 4), np.uint16), "at least 2x2"),
        ([[1, 2], [3, 4]], "list, not a numpy array"),
    ],
)
def test_mosaics_that_would_change_are_refused(mosaic, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ValueError, TypeError), match=message) as caught:
            image(mosaic=mosaic)
    assert "ascontiguousarray" not in str(caught.value)
