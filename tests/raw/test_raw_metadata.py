"""What the numbers in a RAW file mean: levels, white balance, colours; and TIFF's own tags."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from dng_cases import MATRIX, noise, plane_names, random_raw, rationals
from hypothesis import given, settings
from hypothesis import strategies as st

from isp_distill.raw import metadata, tiff
from isp_distill.raw.metadata import PATTERNS

tifffile = pytest.importorskip("tifffile", reason="the tests' DNG files are written with it")


# --- levels and colours


@pytest.mark.parametrize(
    ("camera", "neutral", "daylight", "expected", "warns"),
    [
        ((2.0, 1.0, 1.5, 0.0), None, (1.0, 1.0, 1.0), (2, 1, 1.5), False),
        ((512.0, 256.0, 384.0, 256.0), None, None, (2, 1, 1.5), False),
        ((2048.0, 1024.0, 1536.0, 1024.0), None, None, (2, 1, 1.5), False),
        ((1.0, 0.5, 0.75, 0.0), None, None, (2, 1, 1.5), False),
        ((512.0, 0.0, 384.0, 256.0), None, None, (2, 1, 1.5), False),
        ((0.0, 0.0, 0.0, 0.0), None, (2.2, 1.1, 1.1), (2, 1, 1), True),
        ((-1.0, -1.0, -1.0, -1.0), None, (2.2, 1.1, 1.1), (2, 1, 1), True),
        ((0.0, 1.0, 0.0, 0.0), (0.5, 1.0, 0.8), (3.0, 1.0, 3.0), (2, 1, 1.25), False),
        ((0.0, 1.0, 0.0, 0.0), None, (1.0, 1.0, 1.0, 0.0), (1, 1, 1), True),
        (None, None, (1.0000001, 1.0, 0.9999999), (1, 1, 1), True),
        ((float("nan"), 1.0, 1.0, 0.0), None, None, (1, 1, 1), True),
        ((1e9, 1.0, 1.0, 0.0), (0.0, 1.0, 1.0), None, (1, 1, 1), True),
        (None, None, None, (1, 1, 1), True),
    ],
)
def test_white_balance(camera, neutral, daylight, expected, warns):
    gains, note = metadata.white_balance_of(camera, neutral, daylight)
    np.testing.assert_allclose(gains, expected)
    assert bool(note) == warns


@pytest.mark.parametrize(
    ("white", "per_channel", "peak", "expected", "warns"),
    [
        (15000, None, 12000, 15000, False),
        (15000, (0, 0, 0, 0), 12000, 15000, False),
        (15000, (14000, 14500, 0, 14500), 12000, 14000, False),
        (15000, (20000, 20000, 20000, 20000), 12000, 15000, False),
        (0, (14000, 14500, 14200, 14500), 12000, 14000, False),
        (0, None, 12000, 16383, True),
        (None, None, 16383, 16383, True),
        (50, (50, 50, 50, 50), 60, 127, True),
    ],
)
def test_white_level(white, per_channel, peak, expected, warns):
    value, note = metadata.white_of(white, per_channel, (60, 64, 64, 60), peak)
    assert value == expected
    assert bool(note) == warns


def test_colour_matrix_falls_back():
    ccm, note = metadata.ccm_of([], np.zeros((4, 3)))
    assert ccm == metadata.IDENTITY
    assert "colour matrix" in note
    table = np.vstack([MATRIX, np.zeros(3)])
    ccm, note = metadata.ccm_of([np.zeros((3, 3))], table)
    assert note is None
    np.testing.assert_allclose(ccm, metadata.camera_to_srgb(MATRIX))


def test_camera_to_srgb():
    ccm = np.array(metadata.camera_to_srgb(MATRIX))
    np.testing.assert_allclose(ccm.sum(axis=1), 1, atol=1e-12)
    # What a white-balanced camera makes of an sRGB colour comes back as that colour.
    colour = np.array([0.7, 0.2, 0.4])
    to_camera = np.array(MATRIX) @ np.array(metadata.SRGB_TO_XYZ)
    balanced = (to_camera @ colour) / (to_camera @ np.ones(3))
    np.testing.assert_allclose(ccm @ balanced, colour, atol=1e-12)
    # The scale of a row (AnalogBalance, white balance) has no effect.
    scaled = np.diag([2.0, 1.0, 0.3]) @ np.array(MATRIX)
    np.testing.assert_allclose(metadata.camera_to_srgb(scaled), ccm, atol=1e-12)
    for bad in (np.zeros((4, 3)), np.full((3, 3), np.nan), np.ones((3, 3)), np.eye(2)):
        assert metadata.camera_to_srgb(bad) is None


@pytest.mark.parametrize("pattern", PATTERNS)
def test_black_of_libraw_follows_the_row_of_red(pattern):
    """LibRaw calls the green of the even rows 1 and that of the odd rows 3."""
    codes = {"R": 0, "B": 2}
    colors = [codes.get(c, 1 if site < 2 else 3) for site, c in enumerate(pattern)]
    raw = random_raw(pattern)
    names = plane_names(raw)[:2, :2].ravel()
    levels = [10, 20, 30, 40]
    black = metadata.black_of_libraw(levels, colors, pattern)
    for site, name in enumerate(names):
        assert black[["R", "Gr", "Gb", "B"].index(name)] == levels[colors[site]]


@pytest.mark.parametrize(
    ("flip", "orientation"),
    [(0, 1), (1, 2), (2, 4), (3, 3), (4, 5), (5, 8), (6, 6), (7, 7), (90, 6), (180, 3), (270, 8)],
)
def test_orientation(flip, orientation):
    assert metadata.orientation_of(flip) == orientation


# --- TIFF tags


def test_tiff_in_either_byte_order(tmp_path):
    for order in "<>":
        path = tmp_path / "x.tif"
        tifffile.imwrite(
            path,
            noise((32, 32)),
            byteorder=order,
            metadata=None,
            extratags=[(50728, "2I", 3, rationals([0.5, 1, 0.25]), True)],
        )
        with open(path, "rb") as file:
            directories = tiff.read_directories(file)
        assert tiff.find(directories, tiff.AS_SHOT_NEUTRAL) == (0.5, 1.0, 0.25)
        assert tiff.find(directories, tiff.IMAGE_WIDTH) == (32,)
        assert not tiff.is_dng(directories)


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=300), order=st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"])
)
def test_tiff_never_raises_on_nonsense(data, order):
    assert isinstance(tiff.read_directories(io.BytesIO(order + data)), list)


def tiff_of(entries, nbytes):
    """A file of one directory, (tag, type, count, position or value) each, and then zeros."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows
    return io.BytesIO(head + bytes(nbytes - len(head)))


def test_tags_that_share_their_bytes_do_not_fill_the_memory():
    """40 tags, all of the same megabyte: a small file whose values are 40 times its size."""
    megabyte = 1 << 20
    file = tiff_of([(40_000 + i, 1, megabyte, 4096) for i in range(40)], megabyte + 8192)
    (directory,) = tiff.read_directories(file)
    assert len(directory) == 40
    read = [tag for tag, value in directory.items() if not isinstance(value, tiff.Unreadable)]
    assert read == list(range(40_000, 40_016))
    with pytest.raises(tiff.TagError, match="its Last tag comes after 16777216 bytes"):
        tiff.required(directory, 40_039, "Last")


def test_a_million_sub_directories_that_lead_nowhere():
    """Each was once taken off the front of a list of a million: minutes for 1 MB of zeros."""
    file = tiff_of([(tiff.SUB_IFDS, 1, 1 << 20, 4096)], (1 << 20) + 8192)
    started = time.perf_counter()
    assert len(tiff.read_directories(file)) == 1
    assert time.perf_counter() - started < 10


def test_the_first_of_two_entries_of_a_tag_counts():
    file = tiff_of([(tiff.MAKE, 3, 1, 7), (tiff.MAKE, 99, 1, 8)], 512)
    assert tiff.read_directories(file) == [{tiff.MAKE: (7,)}]


def test_big_tiff_is_not_read_as_if_it_were_small():
    entry = struct.pack("<HHQQ", tiff.IMAGE_WIDTH, 4, 1, 5)
    file = io.BytesIO(b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1) + entry + bytes(8))
    assert tiff.read_directories(file) == []
