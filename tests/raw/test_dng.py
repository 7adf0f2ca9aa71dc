"""write_dng: what read_raw gives back, and what it refuses before touching the disk."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isp_distill.raw.dng.writer import write_dng
from isp_distill.raw.image import RawImage, read_raw
from isp_distill.raw.metadata import PATTERNS

relaxed = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def noise(shape, bits=12, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, shape, dtype=np.uint16)


def plausible_ccm(values):
    """A 3x3 matrix near the identity whose rows sum to 1."""
    matrix = np.eye(3) + np.asarray(values).reshape(3, 3)
    return matrix / matrix.sum(axis=1, keepdims=True)


@relaxed
@given(
    pattern=st.sampled_from(PATTERNS),
    bits=st.sampled_from([10, 12, 14, 16]),
    height=st.integers(11, 40).map(lambda n: 2 * n),
    width=st.integers(11, 40).map(lambda n: 2 * n),
    black=st.lists(st.floats(0, 900), min_size=4, max_size=4),
    gains=st.tuples(st.floats(0.3, 8), st.floats(0.3, 8)),
    mixing=st.lists(st.floats(-0.25, 0.25), min_size=9, max_size=9),
    orientation=st.integers(1, 8),
    seconds=st.none() | st.floats(1e-4, 30),
    iso=st.none() | st.integers(25, 60000),
    seed=st.integers(0, 2**32),
)
def test_round_trip(
    tmp_path,
    pattern,
    bits,
    height,
    width,
    black,
    gains,
    mixing,
    orientation,
    seconds,
    iso,
    seed,
):
    mosaic = noise((height, width), bits, seed)
    mosaic[0, 0] = 1  # all zeros would rightly be refused
    ccm = plausible_ccm(mixing)
    path = write_dng(
        tmp_path / "x.dng",
        mosaic,
        pattern=pattern,
        bits=bits,
        black=black,
        white_balance=(gains[0], 1.0, gains[1]),
        ccm=ccm,
        orientation=orientation,
        exposure_time=seconds,
        iso=iso,
        camera="Some Camera 1",
    )
    raw = read_raw(path)
    np.testing.assert_array_equal(raw.mosaic, mosaic)
    assert raw.pattern == pattern
    np.testing.assert_allclose(raw.black, black, atol=1e-4)
    assert raw.white == 2**bits - 1
    np.testing.assert_allclose(raw.white_balance, (gains[0], 1.0, gains[1]), rtol=1e-3)
    np.testing.assert_allclose(raw.ccm, ccm, atol=1e-3)
    np.testing.assert_allclose(np.sum(raw.ccm, axis=1), 1.0, atol=1e-12)
    assert raw.orientation == orientation
    assert raw.exposure_time == (None if seconds is None else pytest.approx(seconds, rel=1e-2))
    assert raw.iso == iso
    assert raw.camera == "Some Camera 1"
    assert raw.path == str(path)


@relaxed
@given(
    pattern=st.sampled_from(PATTERNS),
    top=st.integers(0, 7),
    left=st.integers(0, 7),
    bottom=st.integers(0, 7),
    right=st.integers(0, 7),
)
def test_margins_keep_colours_and_blacks(tmp_path, pattern, top, left, bottom, right):
    """Every visible pixel keeps its value, colour and black level, odd margins too."""
    mosaic = noise((60, 60)) + 1
    black = {"R": 10.25, "Gr": 20.5, "Gb": 30.75, "B": 41.0}
    path = write_dng(
        tmp_path / "x.dng",
        mosaic,
        pattern=pattern,
        black=list(black.values()),
        active_area=(top, left, 60 - bottom, 60 - right),
    )
    raw = read_raw(path)
    # LibRaw may start one row or column later, at an even margin: find where.
    (origin,) = [
        (y, x)
        for y in (top, top + 1)
        for x in (left, left + 1)
        if np.array_equal(mosaic[y : y + raw.height, x : x + raw.width], raw.mosaic)
    ]
    assert raw.height >= 60 - top - bottom - 2
    assert raw.width >= 60 - left - right - 2
    sensor_names = {
        "RGGB": [["R", "Gr"], ["Gb", "B"]],
        "BGGR": [["B", "Gb"], ["Gr", "R"]],
        "GRBG": [["Gr", "R"], ["B", "Gb"]],
        "GBRG": [["Gb", "B"], ["R", "Gr"]],
    }[pattern]
    for y in (0, 1):
        for x in (0, 1):
            name = sensor_names[(y + origin[0]) % 2][(x + origin[1]) % 2]
            assert raw.pattern[2 * y + x] == name[0]
            assert raw.black_per_site[y, x] == pytest.approx(black[name], abs=1e-4)


def test_color_matrix_is_what_libraw_uses(tmp_path):
    """LibRaw's own camera to sRGB conversion, from the same tag, agrees with ours."""
    rawpy = pytest.importorskip("rawpy", reason="LibRaw is what is compared with")
    matrix = [[0.838, -0.263, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]]
    path = write_dng(tmp_path / "x.dng", noise((32, 32)), color_matrix=matrix)
    with rawpy.imread(str(path)) as decoder:
        expected = decoder.color_matrix[:, :3]
    np.testing.assert_allclose(read_raw(path).ccm, expected, atol=1e-5)
    assert abs(expected[0, 0] - 1) > 0.1  # the identity would agree with a reader that gave up


def test_scene_white_maps_to_the_neutral(tmp_path):
    """With a ccm the matrix says "daylight": XYZ of D65 gives AsShotNeutral, up to scale."""
    tifffile = pytest.importorskip("tifffile", reason="the tests' DNG files are written with it")
    path = write_dng(
        tmp_path / "x.dng",
        noise((32, 32)),
        white_balance=(2.0, 1.0, 1.6),
        ccm=plausible_ccm([0.5, -0.3, -0.1, -0.2, 0.4, -0.2, 0.0, -0.4, 0.5]),
    )
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        matrix = np.array(tags[50721].value).reshape(3, 3, 2)
    matrix = matrix[..., 0] / matrix[..., 1]
    white = matrix @ np.array([0.95047, 1.0, 1.08883])
    np.testing.assert_allclose(white / white[1], (1 / 2.0, 1.0, 1 / 1.6), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mosaic": np.zeros((32, 32), np.int32)}, "must be uint16"),
        ({"mosaic": np.zeros((32, 20), np.uint16)}, "at least 22"),
        ({"mosaic": np.zeros((2, 32, 32), np.uint16)}, "at least 22"),
        ({"pattern": "RGBG"}, "pattern must be"),
        ({"bits": 10}, "above 10 bits"),
        ({"bits": 17}, "bits must be"),
        ({"black": (1, 2, 3)}, "black must be"),
        ({"black": -1}, "black must be"),
        ({"black": float("nan")}, "black must be"),
        ({"white": 0}, "white must be"),
        ({"white": 100.5}, "white must be"),
        ({"white": 70000}, "white must be"),
        ({"white": 500, "black": 500}, "white must be"),
        ({"white_balance": (1, 1)}, "white_balance"),
        ({"white_balance": (0, 1, 1)}, "white_balance"),
        ({"white_balance": (100, 1, 1)}, "64 times"),
        ({"ccm": np.eye(3), "color_matrix": np.eye(3)}, "not both"),
        ({"ccm": 2 * np.eye(3)}, "sum to 1"),
        ({"color_matrix": np.ones((3, 3))}, "singular"),
        ({"color_matrix": np.eye(4)}, "3x3"),
        ({"orientation": 0}, "orientation"),
        ({"camera": ""}, "camera"),
        ({"camera": "Kamera für alles"}, "camera"),
        ({"exposure_time": 0}, "exposure_time"),
        ({"iso": 70000}, "iso"),
        ({"active_area": (0, 0, 33, 32)}, "active_area"),
        ({"active_area": (0, 0, 20, 32)}, "active_area"),
    ],
)
def test_bad_arguments_leave_no_file(tmp_path, change, message):
    arguments = {"mosaic": noise((32, 32)) | 2048, **change}
    mosaic = arguments.pop("mosaic")
    with pytest.raises((ValueError, TypeError), match=message):
        write_dng(tmp_path / "x.dng", mosaic, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_dng(tmp_path / "x.dng", noise((32, 32), seed=1))
    before = path.read_bytes()

    def fail(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_dng(path, noise((32, 32), seed=2))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.dng"]


def test_missing_tifffile_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImportError, match=r"pip install isp-distill\[images\]"):
        write_dng(tmp_path / "x.dng", noise((32, 32)))
    assert list(tmp_path.iterdir()) == []


def test_a_raw_image_in_place_of_its_mosaic_is_named(tmp_path):
    raw = RawImage(mosaic=np.zeros((8, 8), np.uint16), pattern="RGGB", black=0.0, white=1023.0)
    with pytest.raises(TypeError, match="mosaic is a RawImage: give an array"):
        write_dng(tmp_path / "x.dng", raw)
    assert not (tmp_path / "x.dng").exists()
