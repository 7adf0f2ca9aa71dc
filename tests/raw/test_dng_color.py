"""White balance and colour matrix of a DNG with a matrix for each of two lights."""

from __future__ import annotations

import numpy as np
import pytest
from dng_bytes import CAMERA, MATRIX, RATIONAL, SHORT, SRATIONAL, Tag, grey, parts, sensor, write

from isp_distill.errors import CorruptRawError
from isp_distill.raw import metadata
from isp_distill.raw.dng import color as dng_color
from isp_distill.raw.image import read_raw

LAMP = np.array([[0.62, -0.1, -0.03], [-0.45, 1.27, 0.2], [-0.09, 0.19, 0.6]])
A_WHITE = (0.4476, 0.4074)
D65_WHITE = (0.3127, 0.3290)
LEVELS = {50714: Tag(SHORT, 64), 50717: Tag(SHORT, 1023)}


def xyz(xy):
    return np.array([xy[0] / xy[1], 1, (1 - xy[0] - xy[1]) / xy[1]])


def scaled_to(matrix, xy, gains):
    """The matrix with its rows scaled so that white ``xy`` needs ``gains``."""
    matrix = np.asarray(matrix)
    return np.diag(1 / (np.asarray(gains) * (matrix @ xyz(xy)))) @ matrix


# The issue's numbers: what the lamp's white needs, and what D65's would have given.
LAMP_GAINS, DAYLIGHT_GAINS = (1.053, 1, 3.526), (2.039, 1, 1.275)
FIRST = scaled_to(LAMP, A_WHITE, LAMP_GAINS)
SECOND = scaled_to(MATRIX, D65_WHITE, DAYLIGHT_GAINS)


def camera(lights=(17, 21), **tags):
    two = {
        50721: Tag(SRATIONAL, parts(FIRST)),
        50722: Tag(SRATIONAL, parts(SECOND)),
        50778: Tag(SHORT, lights[0]),
        50779: Tag(SHORT, lights[1]),
    }
    rest = {k: v for k, v in CAMERA.items() if k != 50728}
    named = {"xy": 50729, "neutral": 50728, "analog": 50727, "calibration": 50723}
    kinds = {"calibration": SRATIONAL}
    given = {named[n]: Tag(kinds.get(n, RATIONAL), parts(v)) for n, v in tags.items()}
    if "calibration" in tags:
        given[50724] = given[50723]
    return {**rest, **two, **given}


def read(tmp_path, **arguments):
    return read_raw(write(tmp_path / "x.dng", sensor(grey(), LEVELS), camera=camera(**arguments)))


def blackbody(kelvin):
    """Chromaticity of a black body: Planck's law, and the fit of C. Wyman et al. (2013) to the CIE
    1931 observer."""
    w = np.arange(380.0, 781.0, 5)

    def lobe(height, centre, below, above):
        t = (w - centre) * np.where(w < centre, below, above)
        return height * np.exp(-0.5 * t**2)

    x = lobe(0.362, 442.0, 0.0624, 0.0374) + lobe(1.056, 599.8, 0.0264, 0.0323)
    x += lobe(-0.065, 501.1, 0.0490, 0.0382)
    y = lobe(0.821, 568.8, 0.0213, 0.0247) + lobe(0.286, 530.9, 0.0613, 0.0322)
    z = lobe(1.217, 437.0, 0.0845, 0.0278) + lobe(0.681, 459.0, 0.0385, 0.0725)
    power = w**-5 / (np.exp(1.4388e7 / (w * kelvin)) - 1)
    total = np.array([(c * power).sum() for c in (x, y, z)])
    return total[0] / total.sum(), total[1] / total.sum()


@pytest.mark.parametrize("kelvin", [2200, 2500, 2856, 3500, 4500, 5500, 6500, 9000, 15000])
def test_temperature_of_a_black_body(kelvin):
    assert dng_color.temperature_of(blackbody(kelvin)) == pytest.approx(kelvin, rel=0.02)


@pytest.mark.parametrize(
    ("xy", "kelvin"), [(A_WHITE, 2856), (D65_WHITE, 6504), ((0.3457, 0.3585), 5003)]
)
def test_temperature_of_the_standard_lights(xy, kelvin):
    assert dng_color.temperature_of(xy) == pytest.approx(kelvin, rel=2e-3)


def test_as_shot_white_uses_the_matrix_of_its_light(tmp_path):
    raw = read(tmp_path, xy=A_WHITE)
    np.testing.assert_allclose(raw.white_balance, LAMP_GAINS, rtol=2e-3)
    raw = read(tmp_path, xy=D65_WHITE)
    np.testing.assert_allclose(raw.white_balance, DAYLIGHT_GAINS, rtol=2e-3)


def test_as_shot_white_between_the_lights(tmp_path):
    """4000 K: the share of the first light, by hand, in 1/T."""
    xy = (0.3805, 0.3768)
    share = (1 / 4000 - 1 / 6504) / (1 / 2856 - 1 / 6504)
    response = (share * FIRST + (1 - share) * SECOND) @ xyz(xy)
    raw = read(tmp_path, xy=xy)
    np.testing.assert_allclose(raw.white_balance, response[1] / response, rtol=5e-3)
    # The tags in the other order are the same camera.
    other = {**camera(xy=xy), 50778: Tag(SHORT, 21), 50779: Tag(SHORT, 17)}
    other |= {50721: other[50722], 50722: other[50721]}
    again = read_raw(write(tmp_path / "y.dng", sensor(grey(), LEVELS), camera=other))
    np.testing.assert_allclose(again.white_balance, raw.white_balance, rtol=1e-9)


def test_analog_balance_and_calibration_are_part_of_the_response(tmp_path):
    plain = read(tmp_path, xy=A_WHITE)
    raw = read(tmp_path, xy=A_WHITE, analog=(2, 1, 1), calibration=np.diag([1, 1, 0.5]))
    expected = np.array(plain.white_balance) * (0.5, 1, 2)
    np.testing.assert_allclose(raw.white_balance, expected, rtol=1e-5)


@pytest.mark.parametrize("xy", [A_WHITE, D65_WHITE, (0.3805, 0.3768), (0.42, 0.39)])
def test_neutral_and_white_are_each_other_s_inverse(tmp_path, xy):
    """The iteration of the specification against the direct way."""
    raw = read(tmp_path, xy=xy)
    again = read(tmp_path, neutral=[1 / g for g in raw.white_balance])
    np.testing.assert_allclose(again.white_balance, raw.white_balance, rtol=1e-5)
    np.testing.assert_allclose(again.ccm, raw.ccm, atol=1e-4)
    colors = dng_color.Colors(
        (
            dng_color.Profile(17, FIRST, np.eye(3)),
            dng_color.Profile(21, SECOND, np.eye(3)),
        ),
        np.ones(3),
    )
    found = dng_color.white_of_neutral(colors, [1 / g for g in raw.white_balance])
    np.testing.assert_allclose(found, xy, atol=1e-4)


def test_colour_matrix_of_daylight_is_that_of_one_matrix(tmp_path):
    """In the light of sRGB there is nothing to adapt: the plain method and this one agree."""
    raw = read(tmp_path, xy=D65_WHITE)
    np.testing.assert_allclose(raw.ccm, metadata.camera_to_srgb(SECOND), atol=2e-3)


def test_colour_matrix_under_a_lamp(tmp_path):
    """A surface under the lamp comes back as the colour that it has in daylight.

    Adapted to D65 by Bradford in cone space, by hand; the matrix of daylight would be far off.
    """
    raw = read(tmp_path, xy=A_WHITE)
    np.testing.assert_allclose(np.sum(raw.ccm, axis=1), 1, atol=1e-12)
    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    surface = np.array([0.5, 0.4, 0.12])  # XYZ under the lamp
    cones = bradford @ surface * (bradford @ xyz(D65_WHITE)) / (bradford @ xyz(A_WHITE))
    expected = np.linalg.inv(metadata.SRGB_TO_XYZ) @ np.linalg.inv(bradford) @ cones
    balanced = FIRST @ surface * raw.white_balance
    balanced *= 1 / (FIRST @ xyz(A_WHITE) * raw.white_balance)[1]
    np.testing.assert_allclose(np.array(raw.ccm) @ balanced, expected, atol=2e-3)
    daylight = np.array(metadata.camera_to_srgb(SECOND)) @ balanced
    assert np.abs(daylight - expected).max() > 0.02


@pytest.mark.parametrize("lights", [(255, 21), (0, 21), (21, 21)])
def test_lights_without_a_temperature_use_the_matrix_of_daylight(tmp_path, lights):
    raw = read(tmp_path, lights=lights, neutral=[0.5, 1, 0.6])
    nearest = FIRST if lights[0] == 21 else SECOND
    np.testing.assert_allclose(raw.ccm, metadata.camera_to_srgb(nearest), atol=1e-4)


def test_no_as_shot_balance_is_said(tmp_path):
    with pytest.warns(UserWarning, match="no as-shot white balance.*daylight"):
        raw = read(tmp_path)
    assert raw.white_balance[1] == 1


def test_no_balance_and_no_matrix_is_said(tmp_path):
    tags = {k: v for k, v in CAMERA.items() if k not in (50721, 50728)}
    path = write(tmp_path / "x.dng", sensor(grey(), LEVELS), camera=tags)
    with (
        pytest.warns(UserWarning, match="no usable colour matrix"),
        pytest.warns(UserWarning, match="no white balance in the file"),
    ):
        assert read_raw(path).white_balance == (1, 1, 1)


@pytest.mark.parametrize("xy", [(0, 0.3), (0.9, 0.5)])
def test_a_white_that_is_none(tmp_path, xy):
    with pytest.raises(CorruptRawError, match="AsShotWhiteXY tag is"):
        read(tmp_path, xy=xy)


def test_a_neutral_that_no_light_gives_falls_back(tmp_path):
    """A magenta white: no chromaticity, so the plain method is used."""
    raw = read(tmp_path, neutral=[1, 0.02, 1])
    np.testing.assert_allclose(raw.ccm, metadata.camera_to_srgb(SECOND), atol=1e-4)
