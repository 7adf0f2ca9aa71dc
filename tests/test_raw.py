"""read_raw, upright, crop, and the meaning of the metadata."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
from fetched import colorchart
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import isp_distill
from isp_distill import raw_metadata, tiff
from isp_distill.dng import write_dng
from isp_distill.errors import CorruptRawError, UnsupportedRawError
from isp_distill.raw import RawImage, crop, read_raw, upright
from isp_distill.raw_metadata import PATTERNS

tifffile = pytest.importorskip("tifffile")

MATRIX = [[0.838, -0.263, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]]
CFA = [
    (33421, "H", 2, (2, 2), True),
    (33422, "B", 4, (0, 1, 1, 2), True),
    (50710, "B", 3, (0, 1, 2), True),
    (50711, "H", 1, 1, True),
]


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(1, 4096, shape, dtype=np.uint16)


def rationals(values):
    return tuple(int(v) for x in np.ravel(values) for v in (round(x * 1e6), 10**6))


def bare_dng(path, data, tags=(), photometric=32803, **arguments):
    """A DNG with only the tags that are given."""
    base = [(50706, "B", 4, (1, 4, 0, 0), True), (50708, "s", 0, "Test", True)]
    single = data.ndim == 2 and photometric == 34892
    tifffile.imwrite(
        path,
        data,
        photometric=1 if single else photometric,
        metadata=None,
        rowsperstrip=len(data),
        extratags=[*base, *tags],
        **arguments,
    )
    if single:  # tifffile insists on three samples for LinearRaw; patch the tag
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags[262].overwrite(34892)
    return path


# --- geometry


def random_raw(pattern="RGGB", orientation=1, height=6, width=10):
    mosaic = np.arange(height * width, dtype=np.uint16).reshape(height, width)
    return RawImage(mosaic, pattern, (1, 2, 3, 4), 1000, orientation=orientation)


def plane_names(raw):
    """The name of every pixel's plane, from first principles: a green is Gr beside a red."""
    letters = np.tile(np.array(list(raw.pattern)).reshape(2, 2), (raw.height // 2, raw.width // 2))
    red_row = np.repeat((letters == "R").any(axis=1)[:, None], raw.width, axis=1)
    return np.where(letters == "G", np.where(red_row, "Gr", "Gb"), letters)


def pil_orient(array, orientation):
    """An EXIF orientation applied by Pillow, which shares no code with ours."""
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    image = Image.fromarray(array.astype(np.int32))
    return np.asarray(image if method is None else image.transpose(method))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright(pattern, orientation):
    raw = random_raw(pattern, orientation)
    turned = upright(raw)
    assert turned.orientation == 1
    assert turned.mosaic.flags.c_contiguous
    np.testing.assert_array_equal(turned.mosaic, pil_orient(raw.mosaic, orientation))
    # Every value keeps its colour letter and its black level.
    letters, levels = {}, {}
    for image, where in ((raw, 0), (turned, 1)):
        names = plane_names(image)
        sites = np.tile(image.black_per_site, (image.height // 2, image.width // 2))
        pixels = zip(image.mosaic.ravel(), names.ravel(), sites.ravel(), strict=True)
        for value, name, level in pixels:
            letters.setdefault(int(value), [None, None])[where] = name[0]
            levels.setdefault(int(value), [None, None])[where] = level
    assert all(a == b for a, b in letters.values())
    assert all(a == b for a, b in levels.values())
    if orientation == 1:
        assert turned is raw


@pytest.mark.parametrize("pattern", PATTERNS)
def test_black_per_site(pattern):
    raw = random_raw(pattern)
    level = {"R": 1, "Gr": 2, "Gb": 3, "B": 4}
    expected = [[level[n] for n in row] for row in plane_names(raw)[:2, :2]]
    np.testing.assert_array_equal(raw.black_per_site, expected)


@settings(max_examples=80, deadline=None)
@given(
    pattern=st.sampled_from(PATTERNS),
    top=st.integers(0, 4),
    left=st.integers(0, 8),
    height=st.integers(1, 3),
    width=st.integers(1, 5),
)
def test_crop(pattern, top, left, height, width):
    raw = random_raw(pattern)
    height, width = min(2 * height, (6 - top) // 2 * 2), min(2 * width, (10 - left) // 2 * 2)
    part = crop(raw, top, left, height, width)
    window = np.s_[top : top + height, left : left + width]
    np.testing.assert_array_equal(part.mosaic, raw.mosaic[window])
    assert not np.shares_memory(part.mosaic, raw.mosaic)
    np.testing.assert_array_equal(plane_names(part), plane_names(raw)[window])
    sites = np.tile(raw.black_per_site, (3, 5))[window]
    np.testing.assert_array_equal(part.black_per_site, sites[:2, :2])


@pytest.mark.parametrize("window", [(0, 0, 3, 4), (0, 0, 0, 4), (-1, 0, 2, 2), (5, 0, 2, 2)])
def test_crop_refuses(window):
    with pytest.raises(ValueError, match="crop"):
        crop(random_raw(), *window)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mosaic": np.zeros((4, 4), np.float32)}, "uint16"),
        ({"mosaic": np.zeros((4, 8), np.uint16)[:, ::2]}, "contiguous"),
        ({"mosaic": np.zeros((4, 5), np.uint16)}, "even"),
        ({"pattern": "RGBG"}, "pattern"),
        ({"orientation": 9}, "orientation"),
    ],
)
def test_raw_image_refuses(change, message):
    arguments = {"mosaic": np.zeros((4, 4), np.uint16), "pattern": "RGGB", **change}
    with pytest.raises(ValueError, match=message):
        RawImage(black=(0, 0, 0, 0), white=1, **arguments)


def test_raw_image_pickles():
    raw = random_raw()
    again = pickle.loads(pickle.dumps(raw))
    np.testing.assert_array_equal(again.mosaic, raw.mosaic)
    assert again.black == raw.black


# --- files


@pytest.mark.registry
def test_colorchart():
    rawpy = pytest.importorskip("rawpy")
    raw = read_raw(colorchart())
    assert (raw.pattern, raw.white, raw.mosaic.shape) == ("RGGB", 15000, (1156, 1734))
    assert raw.black == (2056, 2056, 2056, 2056)
    assert raw.camera == "Canon EOS Kiss X4"
    assert int(raw.mosaic.min()) < 2056  # real files do have values below black
    with rawpy.imread(str(colorchart())) as decoder:
        np.testing.assert_array_equal(raw.mosaic, decoder.raw_image_visible)
        assert decoder.sizes.top_margin == 26
        # LibRaw's own conversion and balance, by another route.
        np.testing.assert_allclose(raw.ccm, decoder.color_matrix[:, :3], atol=1e-5)
        balance = np.array(decoder.camera_whitebalance)
        assert balance[3] == 0
        np.testing.assert_allclose(raw.white_balance, balance[:3] / balance[1], rtol=1e-6)


@pytest.mark.parametrize("margins", [(0, 0), (1, 0), (0, 1), (1, 1), (3, 5), (4, 6)])
def test_pattern_is_that_of_the_visible_area(tmp_path, margins):
    rawpy = pytest.importorskip("rawpy")
    area = (*margins, 48, 64)
    path = write_dng(tmp_path / "x.dng", noise((48, 64)), pattern="GRBG", active_area=area)
    raw = read_raw(path)
    with rawpy.imread(str(path)) as decoder:
        visible = np.array(list("RGBG"))[decoder.raw_colors_visible[:2, :2]]
    assert raw.pattern == "".join(visible.ravel())


def test_odd_edges_are_cropped(tmp_path):
    mosaic = noise((33, 35))
    raw = read_raw(write_dng(tmp_path / "x.dng", mosaic))
    np.testing.assert_array_equal(raw.mosaic, mosaic[:32, :34])


def test_values_outside_black_and_white_are_kept(tmp_path):
    mosaic = noise((32, 32))
    mosaic[0, :4] = (0, 99, 4000, 4095)
    raw = read_raw(write_dng(tmp_path / "x.dng", mosaic, black=100, white=3000))
    assert (raw.black, raw.white) == ((100,) * 4, 3000)
    np.testing.assert_array_equal(raw.mosaic, mosaic)


def test_nothing_known_warns_and_assumes(tmp_path):
    path = bare_dng(tmp_path / "x.dng", noise((32, 32)), CFA)
    with pytest.warns(UserWarning, match="in the file; using") as caught:
        raw = read_raw(path)
    texts = [str(w.message) for w in caught]
    assert any("white balance" in t for t in texts)
    assert any("colour matrix" in t for t in texts)
    assert all(str(path) in t for t in texts)
    assert raw.white_balance == (1, 1, 1)
    assert raw.ccm == raw_metadata.IDENTITY
    assert (raw.exposure_time, raw.iso) == (None, None)


def test_missing_balance_uses_daylight(tmp_path):
    tags = [*CFA, (50721, "2i", 9, rationals(MATRIX), True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raw = read_raw(bare_dng(tmp_path / "x.dng", noise((32, 32)), tags))
    # Daylight gains: the inverse of the camera's response to the white of sRGB (XYZ of D65).
    response = np.array(MATRIX) @ np.array(raw_metadata.SRGB_TO_XYZ).sum(axis=1)
    np.testing.assert_allclose(raw.white_balance, response[1] / response, rtol=1e-4)
    assert raw.white_balance[0] > 1.2


def test_second_matrix_is_used_where_it_is_daylight(tmp_path):
    tags = [
        *CFA,
        (50721, "2i", 9, rationals(np.eye(3)), True),
        (50722, "2i", 9, rationals(MATRIX), True),
        (50778, "H", 1, 17, True),
        (50779, "H", 1, 21, True),
        (50728, "2I", 3, rationals([0.5, 1, 0.6]), True),
    ]
    raw = read_raw(bare_dng(tmp_path / "x.dng", noise((32, 32)), tags))
    np.testing.assert_allclose(raw.ccm, raw_metadata.camera_to_srgb(MATRIX), atol=1e-5)
    np.testing.assert_allclose(raw.white_balance, (2, 1, 1 / 0.6), rtol=1e-5)


def test_name_that_is_not_utf8(tmp_path):
    path = tmp_path / "caf\udce9.dng"
    try:
        write_dng(path, noise((32, 32)))
    except OSError as error:
        pytest.skip(f"this file system wants valid names: {error}")
    np.testing.assert_array_equal(read_raw(path).mosaic, noise((32, 32)))


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_raw(tmp_path / "none.dng")


def write_xtrans(path):
    period = (1, 2, 1, 1, 0, 1, 0, 1, 0, 2, 1, 2, 1, 2, 1, 1, 0, 1)
    period += (1, 0, 1, 1, 2, 1, 2, 1, 2, 0, 1, 0, 1, 0, 1, 1, 2, 1)
    tags = [(33421, "H", 2, (6, 6), True), (33422, "B", 36, period, True), *CFA[2:]]
    bare_dng(path, noise((60, 96)), tags)


def write_quad(path):
    period = (0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 2, 2, 1, 1, 2, 2)
    tags = [(33421, "H", 2, (4, 4), True), (33422, "B", 16, period, True), *CFA[2:]]
    bare_dng(path, noise((64, 96)), tags)


def write_bayer_look_alike(path):
    """The first 2x2 is RGGB, the 4x4 period is not Bayer."""
    period = (0, 1, 2, 1, 1, 2, 1, 0, 2, 1, 0, 1, 1, 0, 1, 2)
    tags = [(33421, "H", 2, (4, 4), True), (33422, "B", 16, period, True), *CFA[2:]]
    bare_dng(path, noise((64, 96)), tags)


def write_four_colours(path):
    tags = [CFA[0], (33422, "B", 4, (3, 4, 1, 5), True), (50710, "B", 4, (3, 4, 1, 5), True)]
    bare_dng(path, noise((64, 96)), tags)


def write_linear(path):
    bare_dng(path, np.stack([noise((32, 48))] * 3, axis=-1), photometric=34892)


def write_monochrome(path):
    bare_dng(path, noise((32, 48)), photometric=34892)


def write_jpeg(path):
    Image.fromarray((noise((32, 48)) >> 4).astype(np.uint8)).save(path, format="JPEG")


def write_png(path):
    Image.fromarray((noise((32, 48)) >> 4).astype(np.uint8)).save(path, format="PNG")


def write_plain_tiff(path):
    tifffile.imwrite(path, np.stack([noise((32, 48))] * 3, axis=-1), photometric="rgb")


def write_deflate(path):
    bare_dng(path, noise((32, 48)), CFA, compression="zlib")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_xtrans, "X-Trans"),
        (write_quad, "RRGG.*not Bayer"),
        (write_bayer_look_alike, "not Bayer"),
        (write_four_colours, "4 colours.*not Bayer"),
        (write_linear, "already demosaiced"),
        (write_monochrome, "monochrome"),
        (write_jpeg, "a JPEG, not a RAW"),
        (write_png, "a PNG, not a RAW"),
        (write_plain_tiff, "TIFF without sensor data"),
        (write_deflate, "compression 8"),
        (lambda path: path.write_bytes(b"not a picture at all" * 100), "no such RAW format"),
    ],
)
def test_unsupported(tmp_path, write, message):
    path = tmp_path / "x.dng"
    write(path)
    with pytest.raises(UnsupportedRawError, match=message) as caught:
        read_raw(path)
    assert caught.value.path == str(path)


class FakeDecoder:
    """What rawpy says of a Foveon file, which nothing here can write."""

    raw_type = None
    raw_image_visible = None


def test_foveon_is_named():
    from isp_distill.raw import _bayer

    with pytest.raises(UnsupportedRawError, match="Foveon"):
        _bayer("a.x3f", FakeDecoder(), b"FOVb\x00\x00", [])


@pytest.mark.parametrize("cut", [1, 2, 100, 1000, 2000])
def test_truncated(tmp_path, cut):
    """One missing byte is enough: LibRaw itself may pad it with what was there before."""
    path = write_dng(tmp_path / "x.dng", noise((32, 32)))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CorruptRawError, match=f"truncated: {cut} bytes"):
        read_raw(path)


def test_truncated_with_byte_counts_that_hide_it(tmp_path):
    path = write_dng(tmp_path / "x.dng", noise((32, 32)))
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[279].overwrite(16)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptRawError, match="truncated: 40 bytes"):
        read_raw(path)


def test_truncated_within_the_header(tmp_path):
    path = write_dng(tmp_path / "x.dng", noise((32, 32)))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises((CorruptRawError, UnsupportedRawError)):
        read_raw(path)


@pytest.mark.parametrize(("data", "message"), [(b"", "empty"), (bytes(5000), "begins with zeros")])
def test_no_data(tmp_path, data, message):
    path = tmp_path / "x.dng"
    path.write_bytes(data)
    with pytest.raises(CorruptRawError, match=message):
        read_raw(path)


def test_all_zero_pixels(tmp_path):
    path = write_dng(tmp_path / "x.dng", np.zeros((32, 32), np.uint16))
    with pytest.raises(CorruptRawError, match="every pixel is 0"):
        read_raw(path)


def test_lying_header(tmp_path):
    path = write_dng(tmp_path / "x.dng", noise((32, 32)))
    with tifffile.TiffFile(path, mode="r+") as file:
        for tag in (256, 257):
            file.pages[0].tags[tag].overwrite(65535)
    with pytest.raises(CorruptRawError, match=r"truncated: \d{10} bytes"):
        read_raw(path)


def test_reading_needs_neither_torch_nor_tifffile(tmp_path):
    """The decode workers depend on it."""
    path = write_dng(tmp_path / "x.dng", noise((32, 32)))
    script = """
        import sys, types
        package = types.ModuleType("isp_distill")
        package.__path__ = [sys.argv[1]]
        sys.modules["isp_distill"] = package
        from isp_distill.raw import read_raw
        read_raw(sys.argv[2])
        print(sorted({"torch", "tifffile", "PIL"} & set(sys.modules)))
    """
    folder = Path(isp_distill.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder), str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# --- metadata


@pytest.mark.parametrize(
    ("camera", "neutral", "daylight", "expected", "warns"),
    [
        ((2.0, 1.0, 1.5, 0.0), None, (1.0, 1.0, 1.0), (2, 1, 1.5), False),
        ((512.0, 256.0, 384.0, 256.0), None, None, (2, 1, 1.5), False),
        ((2048.0, 1024.0, 1536.0, 1024.0), None, None, (2, 1, 1.5), False),
        ((1.0, 0.5, 0.75, 0.0), None, None, (2, 1, 1.5), False),
        ((512.0, 0.0, 384.0, 256.0), None, None, (2, 1, 1.5), False),
        ((0.0, 0.0, 0.0, 0.0), None, (2.2, 1.1, 1.1), (2, 1, 1), False),
        ((-1.0, -1.0, -1.0, -1.0), None, (2.2, 1.1, 1.1), (2, 1, 1), False),
        ((0.0, 1.0, 0.0, 0.0), (0.5, 1.0, 0.8), (3.0, 1.0, 3.0), (2, 1, 1.25), False),
        ((0.0, 1.0, 0.0, 0.0), None, (1.0, 1.0, 1.0, 0.0), (1, 1, 1), True),
        ((float("nan"), 1.0, 1.0, 0.0), None, None, (1, 1, 1), True),
        ((1e9, 1.0, 1.0, 0.0), (0.0, 1.0, 1.0), None, (1, 1, 1), True),
        (None, None, None, (1, 1, 1), True),
    ],
)
def test_white_balance(camera, neutral, daylight, expected, warns):
    gains, note = raw_metadata.white_balance_of(camera, neutral, daylight)
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
    value, note = raw_metadata.white_of(white, per_channel, (60, 64, 64, 60), peak)
    assert value == expected
    assert bool(note) == warns


def test_colour_matrix_falls_back():
    ccm, note = raw_metadata.ccm_of([], np.zeros((4, 3)))
    assert ccm == raw_metadata.IDENTITY
    assert "colour matrix" in note
    table = np.vstack([MATRIX, np.zeros(3)])
    ccm, note = raw_metadata.ccm_of([np.zeros((3, 3))], table)
    assert note is None
    np.testing.assert_allclose(ccm, raw_metadata.camera_to_srgb(MATRIX))


def test_camera_to_srgb():
    ccm = np.array(raw_metadata.camera_to_srgb(MATRIX))
    np.testing.assert_allclose(ccm.sum(axis=1), 1, atol=1e-12)
    # What a white-balanced camera makes of an sRGB colour comes back as that colour.
    colour = np.array([0.7, 0.2, 0.4])
    to_camera = np.array(MATRIX) @ np.array(raw_metadata.SRGB_TO_XYZ)
    balanced = (to_camera @ colour) / (to_camera @ np.ones(3))
    np.testing.assert_allclose(ccm @ balanced, colour, atol=1e-12)
    # The scale of a row (AnalogBalance, white balance) has no effect.
    scaled = np.diag([2.0, 1.0, 0.3]) @ np.array(MATRIX)
    np.testing.assert_allclose(raw_metadata.camera_to_srgb(scaled), ccm, atol=1e-12)
    for bad in (np.zeros((4, 3)), np.full((3, 3), np.nan), np.ones((3, 3)), np.eye(2)):
        assert raw_metadata.camera_to_srgb(bad) is None


@pytest.mark.parametrize("pattern", PATTERNS)
def test_black_of_libraw_follows_the_row_of_red(pattern):
    """LibRaw calls the green of the even rows 1 and that of the odd rows 3."""
    codes = {"R": 0, "B": 2}
    colors = [codes.get(c, 1 if site < 2 else 3) for site, c in enumerate(pattern)]
    raw = random_raw(pattern)
    names = plane_names(raw)[:2, :2].ravel()
    levels = [10, 20, 30, 40]
    black = raw_metadata.black_of_libraw(levels, colors, pattern)
    for site, name in enumerate(names):
        assert black[["R", "Gr", "Gb", "B"].index(name)] == levels[colors[site]]


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
        ({tiff.BLACK_LEVEL: (1, 2), tiff.BLACK_LEVEL_REPEAT_DIM: (2, 2)}, (9, 9, 9, 9)),
        ({tiff.BLACK_LEVEL: (1,), tiff.BLACK_LEVEL_DELTA_H: (0, 1)}, (9, 9, 9, 9)),
        ({tiff.BLACK_LEVEL: (1,), tiff.BLACK_LEVEL_REPEAT_DIM: (1,)}, (9, 9, 9, 9)),
        ({tiff.BLACK_LEVEL: (1,), tiff.ACTIVE_AREA: (0,)}, (9, 9, 9, 9)),
        ({tiff.BLACK_LEVEL: (1,), tiff.ACTIVE_AREA: (2, 0, 9, 9)}, (9, 9, 9, 9)),
        ({tiff.BLACK_LEVEL: (float("nan"),)}, (9, 9, 9, 9)),
    ],
)
def test_black_of_dng(tags, expected):
    assert raw_metadata.black_of_dng(tags, 0, 0, "RGGB", (9, 9, 9, 9)) == expected


@pytest.mark.parametrize(
    ("flip", "orientation"),
    [(0, 1), (1, 2), (2, 4), (3, 3), (4, 5), (5, 8), (6, 6), (7, 7), (90, 6), (180, 3), (270, 8)],
)
def test_orientation(flip, orientation):
    assert raw_metadata.orientation_of(flip) == orientation


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
    import io

    assert isinstance(tiff.read_directories(io.BytesIO(order + data)), list)
