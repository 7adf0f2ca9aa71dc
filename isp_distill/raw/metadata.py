"""What LibRaw and the file's tags say about a RAW file, made into the numbers of a RawImage.

Pure functions from plain values to plain values, one per number, because cameras and converters
disagree on every one of them and most of the odd cases cannot be made as a file. image.py and
interpretation.py call them. Nothing here touches a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from isp_distill.raw.filters import NAMES

Gains = tuple[float, float, float]
Matrix = tuple[Gains, Gains, Gains]
Blacks = tuple[float, float, float, float]
MatrixLike = Sequence[Sequence[float]] | np.ndarray

#: In the order of ``cfa.py``, which needs torch and so cannot be imported here: the index of a
#: pattern is the site (2 * row + column) of its red.
PATTERNS = ("RGGB", "GRBG", "GBRG", "BGGR")
#: Colour plane (0 R, 1 Gr, 2 Gb, 3 B) at (0,0), (0,1), (1,0), (1,1) of each pattern's period: the
#: exclusive or of site and pattern. Gr is the green in a red row. Other filters than Bayer's are
#: among them, see ``filters.py``.
SITE_PLANES = {
    name: tuple(code % 4 ^ site for site in range(4))
    for code, name in reversed([*enumerate(NAMES)])
}

#: Linear sRGB to CIE XYZ, D65 white (IEC 61966-2-1; the constants of dcraw and Brooks et al. 2019).
SRGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

# A gain outside this range is damage, not a colour temperature: candle light needs blue x 5.
_MAX_GAIN = 64.0
# A maker's wish beyond this is damage: HDR phones ask for 4 at most.
_MAX_STOPS = 16.0
# LibRaw's daylight gains for a camera it does not know are 1 but for the rounding of a float32.
_NO_GAIN = 1e-3
# Beyond this a matrix amplifies noise by more than any camera's (the worst known is about 20).
_MAX_CONDITION = 1000.0


def pattern_of(colors: Sequence[int], color_desc: str) -> str | None:
    """The Bayer pattern named by LibRaw's colour indices.

    Args:
        colors: LibRaw's colour index at (0,0), (0,1), (1,0), (1,1) of the visible area; the second
            green is 3.
        color_desc: LibRaw's letters for these indices, for example "RGBG".

    Returns:
        One of ``PATTERNS``, or None where the four sites are not a Bayer period.
    """
    if any(not 0 <= c < len(color_desc) for c in colors):
        return None
    name = "".join(color_desc[c] for c in colors)
    return name if name in PATTERNS else None


def black_of_libraw(levels: Sequence[float], colors: Sequence[int], pattern: str) -> Blacks:
    """Black levels in the order R, Gr, Gb, B from LibRaw's, which are by its colour index.

    LibRaw numbers the greens by the row's parity, not by the colour beside them, so index 1 is Gr
    in one pattern and Gb in another. Its levels already include the common black.

    Args:
        levels: ``black_level_per_channel``, 4 values in raw units.
        colors: LibRaw's colour index at the four sites of the period, row by row.
        pattern: the pattern of the same four sites.
    """
    black = [0.0] * 4
    for site, plane in enumerate(SITE_PLANES[pattern]):
        black[plane] = float(levels[colors[site]])
    return (black[0], black[1], black[2], black[3])


def white_of(
    white: float | None, per_channel: Sequence[float] | None, black: Blacks, peak: int
) -> tuple[float, str | None]:
    """The level at which the sensor saturates, and a warning where it had to be guessed.

    The smallest plausible level is taken, so that no channel stays below 1.0 where another one
    is clipped (clipped highlights would turn magenta once white-balanced).

    Args:
        white: LibRaw's ``white_level``; 0 or None is missing.
        per_channel: LibRaw's ``camera_white_level_per_channel``; None, or zeros, are missing.
        black: black levels, any order.
        peak: the largest value in the mosaic.
    """
    floor = max(black)
    common = float(white or 0)
    ceiling = common if common > floor else 65535.0
    plausible = [float(w) for w in per_channel or () if floor < w <= ceiling]
    if common > floor:
        plausible.append(common)
    if plausible:
        return min(plausible), None
    # Sensors count in whole bits, so the next 2^n - 1 is what the converter could have given.
    guess = float((1 << max(int(peak), int(floor) + 1).bit_length()) - 1)
    return guess, f"no white level above the black level {floor:g}; using {guess:g}"


def _gains(values: Sequence[float] | None) -> Gains | None:
    """Three gains with green 1 from any scale; None where they are missing or damaged.

    Files scale them to a green of 1, of 256 or of 1024, or to a largest of 1; the fourth value (the
    second green) is 0 in most files and is not used unless the first green is missing.
    """
    if values is None or len(values) < 3:
        return None
    red, green, blue = (float(v) for v in values[:3])
    if not green > 0 and len(values) > 3:
        green = float(values[3])
    if not (math.isfinite(green) and green > 0):
        return None
    gains = (red / green, 1.0, blue / green)
    # NaN fails every comparison, so it is caught here too.
    return gains if all(1 / _MAX_GAIN <= g <= _MAX_GAIN for g in gains) else None


def white_balance_of(
    camera: Sequence[float] | None,
    neutral: Sequence[float] | None,
    daylight: Sequence[float] | None,
) -> tuple[Gains, str | None]:
    """White-balance gains (R, G, B; green 1), and a warning where the file has none.

    What the camera measured comes first (the DNG's as-shot neutral, the inverse of the gains, then
    LibRaw's ``camera_whitebalance``), then LibRaw's daylight gains for the camera, then ones.

    Args:
        camera: LibRaw's ``camera_whitebalance``; missing is all 0, -1, or 0 but for green.
        neutral: the DNG's as-shot neutral, the camera's linear response to white; None for other
            formats and where the file does not say.
        daylight: LibRaw's ``daylight_whitebalance``; about 1, 1, 1 where it knows nothing.
    """
    if neutral is not None and len(neutral) == 3 and min(neutral) > 0:
        gains = _gains([1.0 / n for n in neutral])
        if gains is not None:
            return gains, None
    if (gains := _gains(camera)) is not None:
        return gains, None
    gains = _gains(daylight)
    if gains is not None and max(abs(g - 1) for g in gains) > _NO_GAIN:
        red, _, blue = gains
        return gains, (
            f"no as-shot white balance in the file; using daylight's gains, {red:.3f}, 1, "
            f"{blue:.3f} (expect a colour cast under lamps)"
        )
    return (1.0, 1.0, 1.0), "no white balance in the file; using gains of 1 (expect a colour cast)"


def camera_to_srgb(xyz_to_camera: MatrixLike) -> Matrix | None:
    """White-balanced camera RGB to linear sRGB, from the matrix XYZ (D65) to camera RGB.

    dcraw's method: camera = M @ SRGB_TO_XYZ @ rgb; each row is divided by its sum, so that sRGB
    white gives equal camera values (which is what white balance makes of it), then inverted. Rows
    of the result sum to 1.

    Args:
        xyz_to_camera: 3x3, or LibRaw's 4x3 whose fourth row is not used. The scale of a row has no
            effect, so a DNG's AnalogBalance need not be applied.

    Returns:
        The 3x3 matrix, or None where the input is all zeros, not finite or close to singular.
    """
    matrix = np.asarray(xyz_to_camera, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] < 3 or matrix.shape[1] != 3:
        return None
    srgb_to_camera = matrix[:3] @ np.asarray(SRGB_TO_XYZ)
    sums = srgb_to_camera.sum(axis=1)
    if not np.isfinite(srgb_to_camera).all() or (sums <= 1e-6).any():
        return None
    srgb_to_camera /= sums[:, None]
    if not np.linalg.cond(srgb_to_camera) < _MAX_CONDITION:
        return None
    inverse = np.linalg.inv(srgb_to_camera)
    # Exactly 1, so that white stays white after any number of conversions.
    inverse /= inverse.sum(axis=1, keepdims=True)
    rows = [(float(r[0]), float(r[1]), float(r[2])) for r in inverse]
    return (rows[0], rows[1], rows[2])


def ccm_of(dng: Sequence[np.ndarray], libraw: MatrixLike) -> tuple[Matrix, str | None]:
    """The colour matrix of a file, and a warning where it has none and the identity is used.

    A DNG's own matrix comes before LibRaw's table, which is all zeros for cameras it does not know.

    Args:
        dng: the DNG's XYZ to camera matrices, the preferred one first; empty for other formats.
        libraw: ``rgb_xyz_matrix``, [4, 3] (in spite of its name, XYZ to camera).
    """
    for matrix in (*dng, libraw):
        if (ccm := camera_to_srgb(matrix)) is not None:
            return ccm, None
    return IDENTITY, "no usable colour matrix in the file; using the identity (muted colours)"


def baseline_exposure_of(stops: Sequence[float] | None) -> tuple[float, str | None]:
    """A DNG's BaselineExposure in stops, and a warning where it cannot be one.

    BaselineExposureOffset is not added: it belongs to the look of an embedded profile, whose tone
    curve is not applied either.

    Args:
        stops: the tag's values; None where it is absent, which means 0.
    """
    if stops is None:
        return 0.0, None
    if len(stops) != 1 or not abs(stops[0]) <= _MAX_STOPS:
        said = ", ".join(f"{s:g}" for s in stops)
        return 0.0, f"a baseline exposure of {said} stops makes no sense; using 0"
    return float(stops[0]), None


def orientation_of(flip: int) -> int:
    """EXIF orientation (1..8) from LibRaw's ``sizes.flip``.

    LibRaw's bits: 1 mirrors columns, 2 mirrors rows, 4 transposes (after the mirrors undone); it
    may also give 90, 180 or 270 degrees. Anything else is upright (1).
    """
    flip = {90: 6, 180: 3, 270: 5}.get(flip, flip)
    return {0: 1, 1: 2, 2: 4, 3: 3, 4: 5, 5: 8, 6: 6, 7: 7}.get(flip, 1)
