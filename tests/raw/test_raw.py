"""read_raw, upright, crop, and the meaning of the metadata."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from dng_cases import CFA, MATRIX, bare_dng, noise, plane_names, random_raw, rationals
from fetched import colorchart
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from raw_folders import write_xtrans

import isp_distill
from isp_distill.errors import CorruptRawError, UnsupportedRawError
from isp_distill.raw import metadata
from isp_distill.raw.dng.writer import write_dng
from isp_distill.raw.image import crop, read_raw, upright
from isp_distill.raw.metadata import PATTERNS

tifffile = pytest.importorskip("tifffile", reason="the tests' DNG files are written with it")


# --- geometry


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


def test_raw_image_pickles():
    raw = random_raw()
    again = pickle.loads(pickle.dumps(raw))
    np.testing.assert_array_equal(again.mosaic, raw.mosaic)
    assert again.black == raw.black


# --- files


@pytest.mark.registry
def test_colorchart():
    rawpy = pytest.importorskip("rawpy", reason="LibRaw is what is compared with")
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
    rawpy = pytest.importorskip("rawpy", reason="LibRaw is what is compared with")
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
    assert raw.ccm == metadata.IDENTITY
    assert (raw.exposure_time, raw.iso) == (None, None)


def test_missing_balance_uses_daylight(tmp_path):
    tags = [*CFA, (50721, "2i", 9, rationals(MATRIX), True)]
    with pytest.warns(UserWarning, match="no as-shot white balance.*daylight"):
        raw = read_raw(bare_dng(tmp_path / "x.dng", noise((32, 32)), tags))
    # Daylight gains: the inverse of the camera's response to the white of sRGB (XYZ of D65).
    response = np.array(MATRIX) @ np.array(metadata.SRGB_TO_XYZ).sum(axis=1)
    np.testing.assert_allclose(raw.white_balance, response[1] / response, rtol=1e-4)
    assert raw.white_balance[0] > 1.2


def test_second_matrix_is_used_where_it_is_daylight(tmp_path):
    """The light of a lamp that has no temperature: nothing can be interpolated."""
    tags = [
        *CFA,
        (50721, "2i", 9, rationals(np.eye(3)), True),
        (50722, "2i", 9, rationals(MATRIX), True),
        (50778, "H", 1, 255, True),
        (50779, "H", 1, 21, True),
        (50728, "2I", 3, rationals([0.5, 1, 0.6]), True),
    ]
    raw = read_raw(bare_dng(tmp_path / "x.dng", noise((32, 32)), tags))
    np.testing.assert_allclose(raw.ccm, metadata.camera_to_srgb(MATRIX), atol=1e-5)
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
    from isp_distill.raw.refusals import bayer_of

    with pytest.raises(UnsupportedRawError, match="Foveon"):
        bayer_of("a.x3f", FakeDecoder(), b"FOVb\x00\x00", [])


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
        from isp_distill.raw.image import read_raw
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
