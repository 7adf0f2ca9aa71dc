"""Small DNGs, written byte by byte, of what cameras and converters write: levels, floats, sizes.

Every one shows a grey scene whose linear value is 0.174.
"""

from __future__ import annotations

import os
import zlib

import numpy as np
import pytest
from dng_bytes import (
    CAMERA,
    LONG,
    RATIONAL,
    SHORT,
    SRATIONAL,
    UNDEFINED,
    Tag,
    grey,
    parts,
    sensor,
    write,
)

from isp_distill.errors import CorruptRawError, UnsupportedRawError
from isp_distill.raw import tiff
from isp_distill.raw.decoding.pool import DecodePool
from isp_distill.raw.dng.levels import black_of_dng
from isp_distill.raw.image import read_raw

LEVELS = {50714: Tag(SHORT, 64), 50717: Tag(SHORT, 1023)}
GREY = 0.174


def read(tmp_path, *directories, camera=None):
    return read_raw(write(tmp_path / "x.dng", *directories, camera=camera))


def linear(raw):
    """The scene as it was read, float64 [4]; away from the corner, which is white."""
    site = raw.mosaic[4:6, 4:6].astype(np.float64)
    return ((site - raw.black_per_site) / (raw.white - raw.black_per_site)).ravel()


def test_the_scene_itself(tmp_path):
    raw = read(tmp_path, sensor(grey(), LEVELS))
    assert (raw.black, raw.white) == ((64,) * 4, 1023)
    np.testing.assert_allclose(linear(raw), GREY, atol=1e-3)


# --- tags that are there but cannot be read


@pytest.mark.parametrize("count", [0, 65536, 2**32 - 1])
@pytest.mark.parametrize(
    "tag",
    [50713, 50714, 50715, 50716, 50717, 50829, 33422, 33421, 50712],
)
def test_a_damaged_tag_is_not_an_absent_one(tmp_path, tag, count):
    good = {50713: Tag(SHORT, [1, 1]), 50715: Tag(SRATIONAL, parts(np.zeros(32)))}
    good |= {50716: good[50715], 50829: Tag(LONG, [0, 0, 32, 32]), 50712: Tag(SHORT, range(1024))}
    directory = sensor(grey(), {**LEVELS, **good})
    assert read(tmp_path, directory).black == (64,) * 4
    old = directory[tag]
    directory[tag] = Tag(old.kind, old.values, count)
    with pytest.raises(CorruptRawError) as caught:
        read(tmp_path, directory)
    assert "x.dng" in str(caught.value)


@pytest.mark.parametrize("count", [0, 65536, 2**32 - 1])
@pytest.mark.parametrize("tag", [274, 50721, 50722, 50723, 50727, 50728, 50729, 50778])
def test_a_damaged_colour_tag_is_not_an_absent_one(tmp_path, tag, count):
    balance = {50729: Tag(RATIONAL, parts([0.3127, 0.329])), 274: Tag(SHORT, 1)}
    matrices = {50722: CAMERA[50721], 50723: Tag(SRATIONAL, parts(np.eye(3)))}
    camera = {**CAMERA, **balance, **matrices, 50727: Tag(RATIONAL, parts([1, 1, 1]))}
    camera[tag] = Tag(camera[tag].kind, camera[tag].values, count)
    with pytest.raises(CorruptRawError, match=r"its .* tag"):
        read(tmp_path, sensor(grey(), LEVELS), camera=camera)


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        (50714, Tag(RATIONAL, [64, 0]), "BlackLevel tag divides by zero"),
        (50714, Tag(UNDEFINED, b"64\0\0"), "BlackLevel tag holds text"),
        (50714, Tag(11, [float("nan")]), "BlackLevel tag has values that are not finite"),
        (50829, Tag(LONG, [0, 0, 32]), "ActiveArea tag has 3 values|makes no sense"),
        (50713, Tag(SHORT, [0, 2]), "BlackLevelRepeatDim tag is 0 x 2"),
        (50713, Tag(SHORT, [2]), "BlackLevelRepeatDim tag has 1 values"),
    ],
)
def test_nonsense_in_a_level_tag(tmp_path, tag, value, message):
    with pytest.raises(CorruptRawError, match=message):
        read(tmp_path, sensor(grey(), {**LEVELS, tag: value}))


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        (50728, Tag(RATIONAL, parts([0.5, 1])), "AsShotNeutral tag has 2 values"),
        (50721, Tag(SRATIONAL, parts([1, 0, 0])), "ColorMatrix1 tag has 3 values"),
    ],
)
def test_nonsense_in_a_colour_tag(tmp_path, tag, value, message):
    with pytest.raises(CorruptRawError, match=message):
        read(tmp_path, sensor(grey(), LEVELS), camera={**CAMERA, tag: value})


# --- black levels


@pytest.mark.parametrize(
    ("repeat", "values", "expected"),
    [
        (None, [64, 65, 66, 67], (64, 65, 66, 67)),
        ([1, 1], [64, 65, 66, 67], (64, 65, 66, 67)),
        ([4, 4], [64, 65, 66, 67], (64, 65, 66, 67)),
        ([2, 2], [64], (64, 64, 64, 64)),
        ([2, 2], [64, 65, 66, 67], (64, 65, 66, 67)),
        ([1, 4], [64, 65, 66, 67], (65, 66, 65, 66)),
        ([2, 2], [64, 65], None),
        (None, [64, 65, 66], None),
        ([2, 2], [64, 65, 66, 67, 68], None),
    ],
)
def test_count_of_black_levels(tmp_path, repeat, values, expected):
    tags = {**LEVELS, 50714: Tag(SHORT, values)}
    if repeat:
        tags[50713] = Tag(SHORT, repeat)
    if expected is None:
        with pytest.raises(CorruptRawError, match=rf"BlackLevel tag has {len(values)} values"):
            read(tmp_path, sensor(grey(), tags))
    else:
        assert read(tmp_path, sensor(grey(), tags)).black == expected


def test_column_deltas(tmp_path):
    """The issue's numbers: 64, 96, 64, 96, where 80 was read for all."""
    pixels = grey() + np.tile(np.array([0, 32], np.uint16), (32, 16))
    deltas = Tag(SRATIONAL, parts(np.tile([0, 32], 16)))
    raw = read(tmp_path, sensor(pixels, {**LEVELS, 50715: deltas}))
    assert raw.black == (64, 96, 64, 96)


@pytest.mark.parametrize("corner", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("zero", [False, True])
def test_deltas_and_unequal_blacks_in_an_odd_active_area(tmp_path, corner, zero):
    """Against the black level of every pixel, made from first principles."""
    top, left = corner
    height, width = 30 - top, 30 - left
    columns = np.zeros(width) if zero else np.arange(width) % 2 * 8.0
    rows = np.zeros(height) if zero else np.arange(height) % 2 * 2.0
    period = np.array([[60, 64], [68, 72]])
    y, x = np.mgrid[:height, :width]
    area = period[y % 2, x % 2] + rows[y] + columns[x]
    pixels = np.full((32, 32), 1000, np.uint16)
    pixels[top:30, left:30] = area + 100
    tags = {
        50713: Tag(SHORT, [2, 2]),
        50714: Tag(SHORT, period),
        50715: Tag(SRATIONAL, parts(columns)),
        50716: Tag(SRATIONAL, parts(rows)),
        50829: Tag(LONG, [top, left, 30, 30]),
        50717: Tag(SHORT, 1023),
    }
    raw = read(tmp_path, sensor(pixels, tags))
    sites = np.tile(raw.black_per_site, (raw.height // 2, raw.width // 2))
    np.testing.assert_array_equal(raw.mosaic - sites, 100)


def test_deltas_that_are_not_periodic_are_averaged_and_said(tmp_path):
    deltas = np.arange(32.0)
    with pytest.warns(UserWarning, match="BlackLevelDeltaV vary over the frame.*mean"):
        raw = read(tmp_path, sensor(grey(), {**LEVELS, 50716: Tag(SRATIONAL, parts(deltas))}))
    even, odd = 64 + deltas[::2].mean(), 64 + deltas[1::2].mean()
    assert raw.black == (even, even, odd, odd)


def test_deltas_of_another_frame_are_refused(tmp_path):
    with pytest.raises(CorruptRawError, match="BlackLevelDeltaH tag has 31 values for 32 columns"):
        read(tmp_path, sensor(grey(), {**LEVELS, 50715: Tag(SRATIONAL, parts(range(31)))}))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, (9, 9, 9, 9)),
        ({tiff.BLACK_LEVEL: (5.5,)}, (5.5, 5.5, 5.5, 5.5)),
        ({tiff.BLACK_LEVEL: (1, 2), tiff.BLACK_LEVEL_REPEAT_DIM: (1, 2)}, (1, 2, 1, 2)),
        ({tiff.BLACK_LEVEL: (1, 2), tiff.BLACK_LEVEL_REPEAT_DIM: (2, 1)}, (1, 1, 2, 2)),
        (
            {tiff.BLACK_LEVEL: tuple(range(16)), tiff.BLACK_LEVEL_REPEAT_DIM: (4, 4)},
            (5, 6, 9, 10),
        ),
        ({tiff.BLACK_LEVEL: (1, 2, 6), tiff.BLACK_LEVEL_REPEAT_DIM: (1, 3)}, (3, 3, 3, 3)),
        ({tiff.BLACK_LEVEL_DELTA_H: (0, 1)}, (0, 1, 0, 1)),
        ({tiff.BLACK_LEVEL: (1,), tiff.BLACK_LEVEL_DELTA_H: (3,)}, (4, 4, 4, 4)),
    ],
)
def test_black_of_dng(tags, expected):
    assert black_of_dng(tags, 0, 0, "RGGB", (9, 9, 9, 9)) == (expected, None)


# --- several sensor images


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("side", [24, 32, 64])
@pytest.mark.parametrize("reduced", [0, 1])
def test_the_tags_of_the_image_that_is_decoded(tmp_path, order, side, reduced):
    """A second CFA image beside the main one, before or after it, smaller or larger."""
    other = sensor(
        np.full((side, side), 40, np.uint16),
        {254: Tag(LONG, reduced), 50714: Tag(SHORT, 4), 50717: Tag(SHORT, 255)},
    )
    raw = read(tmp_path, *[sensor(grey(), LEVELS), other][::order])
    values = {231: (64, 1023), 40: (4, 255)}[int(raw.mosaic[4, 4])]
    assert (raw.black[0], raw.white) == values
    if reduced:
        assert raw.white == 1023


# --- floating point


def encoded(scene, bits, predictor):
    """The bytes of floats, without arithmetic that the reader uses."""
    if bits == 24:
        words = scene.astype(">f4").view(">u4").astype(np.int64)
        exponent = np.maximum((words >> 23 & 255) - 127 + 63, 0)
        words = np.where(scene == 0, 0, (exponent << 16) | (words >> 7 & 0xFFFF))
        data = np.stack([words >> 16, words >> 8 & 255, words & 255], -1).astype(np.uint8)
    else:
        data = scene.astype(f">f{bits // 8}").view(np.uint8).reshape(*scene.shape, -1)
    if predictor == 1:
        return data[..., ::-1].tobytes()
    step = {3: 1, 34894: 2, 34895: 4}[predictor]
    planes = data.transpose(0, 2, 1).reshape(len(scene), -1, step).astype(np.int64)
    difference = np.diff(planes, axis=1, prepend=0) % 256
    return difference.astype(np.uint8).tobytes()


def float_sensor(scene, bits, compression=1, predictor=1, tags=()):
    data = encoded(scene, bits, predictor)
    data = zlib.compress(data) if compression == 8 else data
    own = {258: Tag(SHORT, bits), 259: Tag(SHORT, compression), 317: Tag(SHORT, predictor)}
    own |= {273: Tag(LONG, data), 279: Tag(LONG, len(data))}
    return sensor(scene.astype(np.float32), {**own, **dict(tags)})


@pytest.mark.parametrize("bits", [16, 24, 32])
@pytest.mark.parametrize("black", [0, 1 / 16])
@pytest.mark.parametrize("white", [None, 1, 100, 4096, 16383, 32768, 65535])
@pytest.mark.parametrize("highlight", [0.9, 1.5])
def test_float_levels_and_pixels_are_on_one_scale(tmp_path, bits, black, white, highlight):
    top = white or 1
    scene = np.full((32, 32), top * (black + (1 - black) * GREY), np.float32)
    # 65504 is the largest half.
    scene[0, 0] = min(top * highlight, 65504) if bits == 16 else top * highlight
    tags = {50714: Tag(RATIONAL, [round(black * top * 10000), 10000])}
    if white:
        tags[50717] = Tag(LONG, white)
    raw = read(tmp_path, float_sensor(scene, bits, tags=tags))
    assert raw.white == 16383
    np.testing.assert_allclose(linear(raw), GREY, atol=3e-4)
    np.testing.assert_allclose(raw.black, 16383 * black, atol=0.1)
    np.testing.assert_allclose(raw.mosaic[0, 0], 16383 * scene[0, 0] / top, rtol=1e-3)


@pytest.mark.parametrize("bits", [16, 24, 32])
@pytest.mark.parametrize("predictor", [1, 3, 34894, 34895])
def test_deflated_floats(tmp_path, bits, predictor):
    rawpy = pytest.importorskip("rawpy", reason="LibRaw is what is compared with")
    scene = np.random.default_rng(0).random((34, 36)).astype(np.float32)
    scene[3, 3], scene[2, 2] = 0, 1
    path = write(tmp_path / "x.dng", float_sensor(scene, bits, 8, predictor, {50717: Tag(LONG, 1)}))
    mosaic = read_raw(path).mosaic
    np.testing.assert_allclose(mosaic, scene * 16383, atol=5 if bits == 16 else 1)
    if predictor != 1:  # LibRaw takes these for big-endian, whatever the file says
        with rawpy.imread(str(path)) as decoder:
            np.testing.assert_allclose(mosaic, decoder.raw_image_visible, atol=1)


def write_tiled(path, scene, compression, predictor):
    """Four tiles of 32 x 32 behind the directory, of which the picture ends within."""
    padded = np.zeros((64, 64), np.float32)
    padded[: len(scene), : scene.shape[1]] = scene
    tiles = [padded[y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    data = [encoded(tile, 32, predictor) for tile in tiles]
    data = [zlib.compress(d) for d in data] if compression == 8 else data
    tags = {
        **{259: Tag(SHORT, compression), 317: Tag(SHORT, predictor)},
        **{273: None, 278: None, 279: None, 322: Tag(LONG, 32), 323: Tag(LONG, 32)},
        **{324: Tag(LONG, [0] * 4), 325: Tag(LONG, [len(d) for d in data])},
        50829: Tag(LONG, [2, 4, *scene.shape]),
    }
    size = len(write(path, sensor(scene, tags)).read_bytes())
    tags[324] = Tag(LONG, size + np.cumsum([0, *(len(d) for d in data[:-1])]))
    path.write_bytes(write(path, sensor(scene, tags)).read_bytes() + b"".join(data))
    return path


def test_tiled_floats_with_an_active_area(tmp_path):
    scene = np.random.default_rng(0).random((40, 36)).astype(np.float32)
    raw = read_raw(write_tiled(tmp_path / "x.dng", scene, 8, 3))
    np.testing.assert_allclose(raw.mosaic, scene[2:, 4:] * 16383, atol=0.51)


def test_uncompressed_float_tiles_are_refused_by_name(tmp_path):
    """LibRaw does not open them; the file is sound."""
    path = write_tiled(tmp_path / "x.dng", np.full((40, 36), GREY, np.float32), 1, 1)
    with pytest.raises(UnsupportedRawError, match="uncompressed floating-point tiles"):
        read_raw(path)


def test_floats_that_do_not_fit_are_cut_and_said(tmp_path):
    scene = np.full((32, 32), GREY, np.float32)
    scene[:2] = 7
    with pytest.warns(UserWarning, match="6.25% of the pixels are brighter than 4 times"):
        raw = read(tmp_path, float_sensor(scene, 32))
    assert raw.mosaic[0, 0] == 65535
    np.testing.assert_allclose(linear(raw), GREY, atol=1e-4)


def test_floats_that_are_no_numbers(tmp_path):
    scene = np.full((32, 32), GREY, np.float32)
    scene[3, 3] = np.nan
    with pytest.raises(CorruptRawError, match="not a number"):
        read(tmp_path, float_sensor(scene, 32))


@pytest.mark.parametrize(
    ("tags", "error"),
    [
        ({317: Tag(SHORT, 2)}, UnsupportedRawError),
        ({273: Tag(LONG, b"no deflate stream" * 4)}, CorruptRawError),
        ({278: Tag(LONG, 4)}, CorruptRawError),
        ({317: Tag(SHORT, 3, 0)}, CorruptRawError),
    ],
)
def test_floats_that_cannot_be_read(tmp_path, tags, error):
    scene = np.full((32, 32), GREY, np.float32)
    with pytest.raises(error):
        read(tmp_path, float_sensor(scene, 32, 8, 3, tags))


# --- names and numbers


def test_a_path_of_bytes(tmp_path):
    path = write(tmp_path / "x.dng", sensor(grey(), LEVELS))
    with pytest.raises(ValueError, match=r"is the path of one: give os\.fsdecode\(path\)"):
        read_raw(os.fsencode(path))
    with DecodePool(1) as pool:
        assert pool.read(os.fsencode(path)).path == str(path)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({34855: Tag(SHORT, 400)}, 400),
        ({34855: Tag(SHORT, 65535), 34866: Tag(LONG, 102400)}, 102400),
        ({34855: Tag(SHORT, 65535), 34864: Tag(SHORT, 1), 34865: Tag(LONG, 80000)}, 80000),
        (
            {
                34855: Tag(SHORT, 65535),
                34864: Tag(SHORT, 1),
                34865: Tag(LONG, 80000),
                34866: Tag(LONG, 102400),
            },
            80000,
        ),
        ({34855: Tag(SHORT, 65535)}, 65535),
    ],
)
def test_iso_above_16_bits(tmp_path, tags, expected):
    assert read(tmp_path, sensor(grey(), {**LEVELS, **tags})).iso == expected
