"""register() against pictures whose place over the mosaic is known."""

import dataclasses

import numpy as np
import pytest
from pair_cases import camera_jpeg, mosaic_of, photograph, pixels, write_raw

import isp_distill
from isp_distill.data.phase_correlation import correlate, faded, structure
from isp_distill.data.registration import misaligned


@pytest.mark.parametrize(
    ("name", "cut", "scale"),
    [
        ("astronaut", (8, 30, 12, 9), 1.003),
        ("coffee", (30, 8, 21, 17), 0.997),
        ("chelsea", (11, 13, 29, 8), 1.003),
        ("rocket", (25, 19, 8, 30), 0.5),
        ("retina", (8, 16, 30, 24), 1.3),
    ],
)
def test_crop_and_scale_are_found_within_a_third_of_a_pixel(name, cut, scale, tmp_path):
    path = write_raw(tmp_path / "x.dng", photograph(name))
    raw = isp_distill.read_raw(path)
    placed = isp_distill.register(raw, pixels(camera_jpeg(path, cut, scale)))
    for axis in (0, 1):
        assert abs(-placed.shift[axis] / placed.scale - cut[axis]) < 0.3
    assert abs(placed.scale / scale - 1) * 1000 < 0.3
    assert placed.residual < 0.35
    assert placed.parts == 9


def test_a_large_mosaic_is_binned_and_numbers_are_still_of_its_own_pixels(tmp_path):
    path = write_raw(tmp_path / "x.dng", photograph("coffee", 2600))
    cut = (20, 12, 30, 8)
    placed = isp_distill.register(isp_distill.read_raw(path), pixels(camera_jpeg(path, cut, 0.4)))
    for axis in (0, 1):
        assert abs(-placed.shift[axis] / placed.scale - cut[axis]) < 0.3 * 2.6
    assert abs(placed.scale / 0.4 - 1) * 1000 < 0.3
    assert placed.residual < 0.35


def test_a_mosaic_that_lies_on_its_side_is_turned_upright_first(tmp_path):
    path = write_raw(tmp_path / "x.dng", photograph("astronaut", 600), orientation=6)
    raw = isp_distill.read_raw(path)
    assert raw.orientation == 6
    placed = isp_distill.register(raw, pixels(camera_jpeg(path, (10, 20, 14, 8), 1.003)))
    assert [round(-shift / placed.scale) for shift in placed.shift] == [10, 20]


def test_a_lens_correction_is_what_is_left(tmp_path):
    """Moved outwards by up to 1% towards the corners: no scale and shift can undo that."""
    from scipy import ndimage

    path = write_raw(tmp_path / "x.dng", photograph("retina"))
    raw = isp_distill.read_raw(path)
    straight = pixels(camera_jpeg(path))
    height, width = straight.shape[:2]
    y, x = np.mgrid[:height, :width].astype(float)
    away = ((y - height / 2) ** 2 + (x - width / 2) ** 2) / (width / 2) ** 2
    factor = 1 - 0.02 * away
    at = [height / 2 + (y - height / 2) * factor, width / 2 + (x - width / 2) * factor]
    bent = np.stack([ndimage.map_coordinates(straight[..., c], at, order=1) for c in range(3)], -1)
    residuals = [isp_distill.register(raw, one).residual for one in (straight, bent)]
    assert residuals[0] < 0.35
    assert residuals[1] > 1.0


def test_another_picture_is_refused_with_the_number(tmp_path):
    raw = isp_distill.read_raw(write_raw(tmp_path / "x.dng", photograph("coffee", 640)))
    other = write_raw(tmp_path / "y.dng", photograph("astronaut", 640))
    with pytest.raises(isp_distill.RawError, match=r"x\.dng: its picture does not .* 0 of 9 parts"):
        isp_distill.register(raw, pixels(camera_jpeg(other)))


def test_a_frame_without_texture_is_refused_with_the_number(tmp_path):
    grey = np.full((300, 400, 3), 120, np.uint8)
    path = write_raw(tmp_path / "x.dng", grey)
    flat = isp_distill.RawImage(np.full((300, 400), 600, np.uint16), "RGGB", 64, 1023)
    for raw in (isp_distill.read_raw(path), flat):
        with pytest.raises(isp_distill.RawError, match=r"[0-3] of 9 parts .* no texture"):
            isp_distill.register(raw, grey)


def test_a_registration_of_other_files_is_measured_on_a_smaller_copy_of_the_picture(tmp_path):
    path = write_raw(tmp_path / "x.dng", photograph("coffee", 800))
    raw, picture = isp_distill.read_raw(path), pixels(camera_jpeg(path, (8, 8, 8, 8)))
    placed = isp_distill.register(raw, picture)
    assert misaligned(raw, picture[::2, ::2], placed).residual < 1.0
    moved = dataclasses.replace(placed, shift=(placed.shift[0] + 4, placed.shift[1]))
    assert misaligned(raw, picture, moved).residual == pytest.approx(4 * 1000 / 800, abs=0.5)


def test_the_window_and_the_part_that_is_shown():
    placed = isp_distill.Registration(0.5, (-4.5, -6.0), 0.1, (), (96, 128), (40, 52))
    assert placed.window((10, 12, 32, 16)) == (0.5, 0.0, 16.5, 8.0)
    # 9 rows are cut above, so the first whole period begins with row 10; the last ends at 88.
    assert placed.shown == (10, 12, 78, 104)


@pytest.mark.parametrize(
    "picture",
    [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3)), np.zeros((8, 64, 3), np.uint8), "x.jpg"],
)
def test_what_is_no_picture_is_refused(picture):
    raw = isp_distill.RawImage(mosaic_of(photograph("coffee", 100)), "RGGB", 512, 16383)
    with pytest.raises(ValueError, match="picture"):
        isp_distill.register(raw, picture)
    with pytest.raises(TypeError, match="RawImage"):
        isp_distill.register(raw.mosaic, np.zeros((64, 64, 3), np.uint8))


def test_the_peak_is_where_a_known_shift_is():
    """A field shifted by a fraction of a pixel in the frequency domain, so exactly."""
    rng = np.random.default_rng(0)
    field = faded(structure(rng.normal(size=(90, 120)).astype(np.float32)))
    rows, columns = np.fft.fftfreq(180), np.fft.fftfreq(240)
    padded = np.fft.fft2(field, (180, 240))
    turned = padded * np.exp(-2j * np.pi * (3.3 * rows[:, None] - 7.6 * columns))
    peak = correlate(field, np.fft.ifft2(turned), reach=20)
    assert peak.down == pytest.approx(3.3, abs=0.05)
    assert peak.right == pytest.approx(-7.6, abs=0.05)
    assert peak.height > 0.5
