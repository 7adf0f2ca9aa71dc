"""A DNG's own colours: what the camera makes of the white that was lit, and its way to sRGB.

A DNG has a matrix from CIE XYZ to the camera's colours for each of two lights, usually tungsten
and daylight. For the light of a picture they are interpolated by its correlated colour temperature.

Sources: the DNG specification 1.7, chapter 6 ("Mapping Camera Color Space to CIE XYZ Space",
"Translating Camera Neutral Coordinates to White Balance xy Coordinates"). Correlated colour
temperature: A. R. Robertson, "Computation of correlated color temperature and distribution
temperature", J. Opt. Soc. Am. 58 (1968), with the table of Wyszecki and Stiles, "Color Science".
Chromatic adaptation: the linear Bradford transform (ICC.1:2010, annex E). Third lights (DNG 1.6)
and forward matrices are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isp_distill.raw import tiff
from isp_distill.raw.metadata import SRGB_TO_XYZ, Matrix

# Kelvin for each EXIF LightSource; of a fluorescent lamp the middle of the range that EXIF gives.
_TEMPERATURES: dict[float, float] = {
    **{1: 5500.0, 2: 4150.0, 3: 2856.0, 4: 5500.0, 9: 5500.0, 10: 6500.0, 11: 7500.0},
    **{12: 6400.0, 13: 5050.0, 14: 4150.0, 15: 3525.0, 16: 2925.0, 17: 2856.0, 18: 5500.0},
    **{19: 6500.0, 20: 5500.0, 21: 6504.0, 22: 7500.0, 23: 5003.0, 24: 3200.0},
}
# EXIF LightSource codes of daylight: D65; D75, D55, flash and weather; D50. The others are lamps.
_DISTANCE_FROM_D65: dict[float, int] = {21: 0, 22: 1, 20: 1, 1: 1, 4: 1, 9: 1, 10: 1, 23: 2}

# Isotemperature lines in CIE 1960 u, v: microreciprocal kelvin, u and v on the Planckian locus,
# slope of the line through them.
_ISOTEMPERATURE = np.array(
    [
        (0.01, 0.18006, 0.26352, -0.24341),
        (10, 0.18066, 0.26589, -0.25479),
        (20, 0.18133, 0.26846, -0.26876),
        (30, 0.18208, 0.27119, -0.28539),
        (40, 0.18293, 0.27407, -0.30470),
        (50, 0.18388, 0.27709, -0.32675),
        (60, 0.18494, 0.28021, -0.35156),
        (70, 0.18611, 0.28342, -0.37915),
        (80, 0.18740, 0.28668, -0.40955),
        (90, 0.18880, 0.28997, -0.44278),
        (100, 0.19032, 0.29326, -0.47888),
        (125, 0.19462, 0.30141, -0.58204),
        (150, 0.19962, 0.30921, -0.70471),
        (175, 0.20525, 0.31647, -0.84901),
        (200, 0.21142, 0.32312, -1.0182),
        (225, 0.21807, 0.32909, -1.2168),
        (250, 0.22511, 0.33439, -1.4512),
        (275, 0.23247, 0.33904, -1.7298),
        (300, 0.24010, 0.34308, -2.0637),
        (325, 0.24792, 0.34655, -2.4681),
        (350, 0.25591, 0.34951, -2.9641),
        (375, 0.26400, 0.35200, -3.5814),
        (400, 0.27218, 0.35407, -4.3633),
        (425, 0.28039, 0.35577, -5.3762),
        (450, 0.28863, 0.35714, -6.7262),
        (475, 0.29685, 0.35823, -8.5955),
        (500, 0.30505, 0.35907, -11.324),
        (525, 0.31320, 0.35968, -15.628),
        (550, 0.32129, 0.36011, -23.325),
        (575, 0.32931, 0.36038, -40.770),
        (600, 0.33724, 0.36051, -116.45),
    ]
)
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D50 = (0.3457, 0.3585)
# Beyond this a matrix amplifies noise by more than any camera's (the worst known is about 20).
_MAX_CONDITION = 1000.0

XY = tuple[float, float]


@dataclass(frozen=True)
class Profile:
    """One light's matrix from CIE XYZ to the camera's colours.

    Attributes:
        light: its EXIF LightSource; 0 is unknown.
        matrix: ColorMatrix, float64 [3, 3].
        calibration: CameraCalibration, this camera's difference from its model, float64 [3, 3].
    """

    light: float
    matrix: np.ndarray
    calibration: np.ndarray


@dataclass(frozen=True)
class Colors:
    """What a DNG says about its colours.

    Attributes:
        profiles: of none, one or two lights.
        analog_balance: gains that the camera applied before it digitised, float64 [3].
    """

    profiles: tuple[Profile, ...]
    analog_balance: np.ndarray

    def daylight(self) -> list[np.ndarray]:
        """The matrices with their calibration, that for the light closest to D65 first."""
        near = sorted(self.profiles, key=lambda p: _DISTANCE_FROM_D65.get(p.light, 3))
        return [p.calibration @ p.matrix for p in near]

    def xyz_to_camera(self, xy: XY) -> np.ndarray | None:
        """The matrix for a scene of white ``xy``, float64 [3, 3]; None where there is none.

        Interpolated linearly in 1/T and held beyond both lights. Where a light's temperature is
        not known, the matrix of the light closest to D65.
        """
        if not self.profiles:
            return None
        lights = [_TEMPERATURES.get(p.light) for p in self.profiles]
        if len(lights) == 2 and lights[0] and lights[1] and lights[0] != lights[1]:
            first, second = self.profiles
            share = (1 / temperature_of(xy) - 1 / lights[1]) / (1 / lights[0] - 1 / lights[1])
            share = min(max(share, 0.0), 1.0)
            matrix = share * first.matrix + (1 - share) * second.matrix
            calibration = share * first.calibration + (1 - share) * second.calibration
            camera = calibration @ matrix
        else:
            camera = self.daylight()[0]
        return np.asarray(self.analog_balance[:, None] * camera)

    def interpolates(self) -> bool:
        """Whether the matrix depends on the light."""
        lights = {_TEMPERATURES.get(p.light) for p in self.profiles}
        return len(self.profiles) == 2 and len(lights) == 2 and None not in lights


def temperature_of(xy: XY) -> float:
    """Correlated colour temperature of a chromaticity, kelvin, 1,667 to 10^8 (held there)."""
    below = -2 * xy[0] + 12 * xy[1] + 3
    u, v = 4 * xy[0] / below, 6 * xy[1] / below
    reciprocal, line_u, line_v, slope = _ISOTEMPERATURE.T
    distance = ((v - line_v) - slope * (u - line_u)) / np.sqrt(1 + slope**2)
    # The distance is positive on the side of the hotter light and falls from line to line.
    crossed = np.flatnonzero(distance < 0)
    if not len(crossed):
        return float(1e6 / reciprocal[-1])
    after = int(crossed[0])
    if after == 0:
        return float(1e6 / reciprocal[0])
    part = distance[after - 1] / (distance[after - 1] - distance[after])
    mired = reciprocal[after - 1] + part * (reciprocal[after] - reciprocal[after - 1])
    return float(1e6 / mired)


def colors_of(directories: list[tiff.Directory]) -> Colors:
    """The colour tags of a DNG; no profiles where it has none.

    Raises:
        tiff.TagError: a tag is there and cannot be read, or has another number of values.
    """
    profiles = []
    for number, matrix_tag, light_tag, calibration_tag in (
        (1, tiff.COLOR_MATRIX_1, tiff.CALIBRATION_ILLUMINANT_1, tiff.CAMERA_CALIBRATION_1),
        (2, tiff.COLOR_MATRIX_2, tiff.CALIBRATION_ILLUMINANT_2, tiff.CAMERA_CALIBRATION_2),
    ):
        values = _first(directories, matrix_tag, f"ColorMatrix{number}", 9)
        if values is None:
            continue
        calibration = _first(directories, calibration_tag, f"CameraCalibration{number}", 9)
        (light, *_) = _first(directories, light_tag, f"CalibrationIlluminant{number}", 1) or (0,)
        profiles.append(
            Profile(
                light,
                np.asarray(values, dtype=np.float64).reshape(3, 3),
                np.eye(3)
                if calibration is None
                else np.asarray(calibration, dtype=np.float64).reshape(3, 3),
            )
        )
    balance = _first(directories, tiff.ANALOG_BALANCE, "AnalogBalance", 3) or (1.0, 1.0, 1.0)
    return Colors(tuple(profiles), np.asarray(balance, dtype=np.float64))


def as_shot_neutral(
    directories: list[tiff.Directory], colors: Colors
) -> tuple[float, float, float] | None:
    """What the camera made of the white that was lit, on any scale; None where the DNG is silent.

    AsShotNeutral says it; AsShotWhiteXY gives the white's chromaticity, which the matrices take to
    the camera's colours.

    Raises:
        tiff.TagError: a tag is there and cannot be read, or has another number of values.
    """
    neutral = _first(directories, tiff.AS_SHOT_NEUTRAL, "AsShotNeutral", 3)
    if neutral is not None:
        return neutral[0], neutral[1], neutral[2]
    xy = _first(directories, tiff.AS_SHOT_WHITE_XY, "AsShotWhiteXY", 2)
    if xy is None:
        return None
    if not (0 < xy[0] < 1 and 0 < xy[1] < 1 and xy[0] + xy[1] <= 1):
        raise tiff.TagError(f"its AsShotWhiteXY tag is {xy[0]:g}, {xy[1]:g}")
    matrix = colors.xyz_to_camera((xy[0], xy[1]))
    if matrix is None:
        return None
    red, green, blue = (float(v) for v in matrix @ _xyz((xy[0], xy[1])))
    return red, green, blue


def white_of_neutral(colors: Colors, neutral: Sequence[float]) -> XY | None:
    """The chromaticity of the white that the camera saw as ``neutral``.

    The matrix depends on the white and the white on the matrix, so both are found in turn, as the
    specification says; where they swing between two answers the mean is taken.

    Returns:
        x, y; None where there is no such chromaticity.
    """
    xy, before = _D50, _D50
    for _ in range(30):
        matrix = colors.xyz_to_camera(xy)
        if matrix is None or not np.linalg.cond(matrix) < _MAX_CONDITION:
            return None
        xyz = np.linalg.solve(matrix, np.asarray(neutral, dtype=np.float64))
        if not np.isfinite(xyz).all() or min(xyz[:2]) <= 0 or xyz.sum() <= 0:
            return None
        before, xy = xy, (float(xyz[0] / xyz.sum()), float(xyz[1] / xyz.sum()))
        if abs(xy[0] - before[0]) + abs(xy[1] - before[1]) < 1e-7:
            return xy
    return (xy[0] + before[0]) / 2, (xy[1] + before[1]) / 2


def camera_to_srgb_under(colors: Colors, neutral: Sequence[float]) -> Matrix | None:
    """White-balanced camera RGB to linear sRGB for the light that was lit; rows sum to 1.

    The interpolated matrix takes the camera's colours to XYZ under that light, and the linear
    Bradford transform takes those to D65, the white of sRGB.

    Args:
        colors: with two matrices of known lights; others do not depend on the light.
        neutral: what the camera made of white, on any scale.

    Returns:
        The matrix; None where the light or the matrix makes no sense.
    """
    xy = white_of_neutral(colors, neutral)
    matrix = None if xy is None else colors.xyz_to_camera(xy)
    if xy is None or matrix is None or not np.linalg.cond(matrix) < _MAX_CONDITION:
        return None
    white = _xyz(xy)
    cones = _BRADFORD @ np.asarray(SRGB_TO_XYZ).sum(axis=1) / (_BRADFORD @ white)
    adaptation = np.linalg.solve(_BRADFORD, cones[:, None] * _BRADFORD)
    camera_to_xyz = np.linalg.inv(matrix) * (matrix @ white)
    result = np.linalg.solve(np.asarray(SRGB_TO_XYZ), adaptation @ camera_to_xyz)
    sums = result.sum(axis=1, keepdims=True)
    if not np.isfinite(result).all() or (abs(sums - 1) > 1e-3).any():
        return None
    # Exactly 1, so that white stays white after any number of conversions.
    rows = [(float(r[0]), float(r[1]), float(r[2])) for r in result / sums]
    return rows[0], rows[1], rows[2]


def _first(
    directories: list[tiff.Directory], tag: int, name: str, count: int
) -> tuple[float, ...] | None:
    """The tag's values in the first directory that has it."""
    for directory in directories:
        values = tiff.required(directory, tag, name, (count,))
        if values is not None:
            return values
    return None


def _xyz(xy: XY) -> np.ndarray:
    """CIE XYZ of a chromaticity, Y 1; float64 [3]."""
    return np.array([xy[0] / xy[1], 1.0, (1 - xy[0] - xy[1]) / xy[1]])
