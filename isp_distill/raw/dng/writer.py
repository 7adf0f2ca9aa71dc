"""Write a Bayer mosaic as a DNG that LibRaw, and any RAW converter, can read.

For people whose sensor data has no container (industrial cameras, ``unprocess``), and for tests:
``read_raw(write_dng(path, mosaic, ...))`` gives the mosaic back bit for bit. Tags follow the DNG
specification 1.7; tifffile (the ``images`` extra) does the writing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from isp_distill.files.atomic import replaced
from isp_distill.raw import tiff
from isp_distill.raw.metadata import PATTERNS, SITE_PLANES, SRGB_TO_XYZ, MatrixLike

#: LibRaw refuses smaller DNG files.
MIN_SIDE = 22
_MAX_GAIN = 64.0
_COLOR_CODES = {"R": 0, "G": 1, "B": 2}

Tag = tuple[int, str, int, Any]


def write_dng(
    path: str | os.PathLike[str],
    mosaic: np.ndarray,
    *,
    pattern: str = "RGGB",
    black: float | Sequence[float] = 0.0,
    white: float | None = None,
    white_balance: Sequence[float] = (1.0, 1.0, 1.0),
    color_matrix: MatrixLike | None = None,
    ccm: MatrixLike | None = None,
    orientation: int = 1,
    camera: str = "isp-distill",
    bits: int = 16,
    exposure_time: float | None = None,
    iso: float | None = None,
    active_area: tuple[int, int, int, int] | None = None,
) -> Path:
    """Write a mosaic as an uncompressed 16-bit CFA DNG, atomically.

    Args:
        path: the file to write; replaced if it exists. Its folder must exist.
        mosaic: uint16 [H, W], raw units, at least 22x22 (LibRaw refuses smaller ones).
        pattern: colours of ``mosaic[:2, :2]``, margins included: "RGGB", "BGGR", "GRBG", "GBRG".
        black: black level in raw units: one, or four in the order R, Gr, Gb, B (Gr is the green in
            a red row). Fractions are kept to 1/10000.
        white: saturation level, an integer in raw units above black; ``2**bits - 1`` by default.
        white_balance: gains of R, G, B; only their ratio to green counts, 1/64..64.
        color_matrix: 3x3, CIE XYZ (D65) to camera RGB, a DNG's ColorMatrix1.
        ccm: instead of ``color_matrix``: 3x3, white-balanced camera RGB to linear sRGB, rows
            summing to 1 (as in ``RawImage.ccm``). The identity where both are None.
        orientation: EXIF orientation, 1..8.
        camera: UniqueCameraModel, printable ASCII.
        bits: significant bits of a sample, 8..16; samples are stored in 16 bits all the same.
        exposure_time: seconds.
        iso: ISO speed, 1..65534.
        active_area: (top, left, bottom, right) of the visible area on the mosaic, right and bottom
            exclusive. The visible area keeps its own colours: nothing is shifted.

    Returns:
        The path.

    Raises:
        ValueError, TypeError: an argument is out of range; nothing has been written.
        ImportError: tifffile is missing.
        OSError: the file cannot be written; no partial file is left.

    Examples:
        >>> mosaic = np.full((64, 96), 700, dtype=np.uint16)
        >>> path = isp_distill.write_dng("own.dng", mosaic, black=64, white=1023, bits=10)
        >>> bool((isp_distill.read_raw(path).mosaic == mosaic).all())
        True
    """
    given = type(mosaic).__name__
    mosaic = np.asarray(mosaic)
    if mosaic.dtype == object:
        raise TypeError(
            f"mosaic is a {given}: give an array [H, W] of uint16; of a RawImage its mosaic, with "
            "pattern=, black=, white=, white_balance= and ccm= beside it"
        )
    if mosaic.dtype != np.uint16:
        raise TypeError(f"mosaic must be uint16, not {mosaic.dtype}; use mosaic.astype(np.uint16)")
    if mosaic.ndim != 2 or min(mosaic.shape) < MIN_SIDE:
        raise ValueError(
            f"mosaic must be [H, W] with both at least {MIN_SIDE}, not {list(mosaic.shape)}"
        )
    if pattern not in PATTERNS:
        raise ValueError(
            f"pattern must be one of {', '.join(PATTERNS)}, not {pattern!r}: frames of another "
            "filter are kept as .npy with a sensor.toml, see SensorFolder"
        )
    if bits not in range(8, 17):
        raise ValueError(f"bits must be 8..16, not {bits!r}")
    top_value = 2**bits - 1
    if int(mosaic.max()) > top_value:
        raise ValueError(f"mosaic has a value of {int(mosaic.max())}, above {bits} bits")
    if orientation not in range(1, 9):
        raise ValueError(f"orientation must be an EXIF one, 1..8, not {orientation!r}")
    if not camera or not camera.isascii() or not camera.isprintable():
        raise ValueError(f"camera must be printable ASCII and not empty, not {camera!r}")
    levels = _levels(black)
    saturation = top_value if white is None else white
    if saturation != int(saturation) or not max(levels) < saturation <= 65535:
        raise ValueError(
            f"white must be an integer above black {max(levels):g}, up to 65535, not {white!r}"
        )
    neutral = _neutral(white_balance)
    tags: list[Tag] = [
        (tiff.DNG_VERSION, "B", 4, (1, 4, 0, 0)),
        (tiff.DNG_BACKWARD_VERSION, "B", 4, (1, 1, 0, 0)),
        (tiff.UNIQUE_CAMERA_MODEL, "s", 0, camera),
        (tiff.CFA_PLANE_COLOR, "B", 3, (0, 1, 2)),
        (tiff.CFA_LAYOUT, "H", 1, 1),
        (tiff.WHITE_LEVEL, "I", 1, int(saturation)),
        (tiff.COLOR_MATRIX_1, "2i", 9, _rationals(_matrix(color_matrix, ccm, neutral).ravel())),
        (tiff.CALIBRATION_ILLUMINANT_1, "H", 1, tiff.ILLUMINANT_D65),
        (tiff.AS_SHOT_NEUTRAL, "2I", 3, _rationals(neutral)),
        (tiff.ORIENTATION, "H", 1, orientation),
        *_cfa_tags(mosaic.shape, pattern, levels, active_area),
        *_exposure_tags(exposure_time, iso),
    ]
    return _write(Path(path), mosaic, tags)


def _levels(black: float | Sequence[float]) -> list[float]:
    """Four black levels, R, Gr, Gb, B."""
    levels = [float(b) for b in np.atleast_1d(np.asarray(black, dtype=np.float64)).ravel()]
    levels = levels * 4 if len(levels) == 1 else levels
    if len(levels) != 4 or not all(0 <= b < 65535 for b in levels):
        raise ValueError(f"black must be one level or four (R, Gr, Gb, B) in 0..65534, not {black}")
    return levels


def _neutral(white_balance: Sequence[float]) -> list[float]:
    """AsShotNeutral, the camera's response to white: the inverse of the gains, green 1."""
    gains = [float(g) for g in white_balance]
    if len(gains) != 3 or not all(math.isfinite(g) and g > 0 for g in gains):
        raise ValueError(f"white_balance must be three positive gains, not {white_balance}")
    neutral = [gains[1] / g for g in gains]
    if not all(1 / _MAX_GAIN <= n <= _MAX_GAIN for n in neutral):
        raise ValueError(f"white_balance gains must be within 64 times green, not {white_balance}")
    return neutral


def _matrix(
    color_matrix: MatrixLike | None, ccm: MatrixLike | None, neutral: list[float]
) -> np.ndarray:
    """ColorMatrix1, float64 [3, 3].

    From a ccm (white-balanced camera RGB to sRGB): XYZ to sRGB, then the inverse of the ccm, then
    the neutral on each row, so that the white point of D65 gives exactly AsShotNeutral and other
    converters see a picture taken in daylight. Readers that normalise rows are not affected.
    """
    if color_matrix is not None and ccm is not None:
        raise ValueError("give color_matrix or ccm, not both")
    if color_matrix is not None:
        matrix = np.asarray(color_matrix, dtype=np.float64)
    else:
        matrix = np.asarray(np.eye(3) if ccm is None else ccm, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ValueError(f"a colour matrix must be 3x3 and finite, not {matrix.tolist()}")
    if np.linalg.cond(matrix) > 1000:
        raise ValueError(f"the colour matrix is (nearly) singular: {matrix.tolist()}")
    if color_matrix is None:
        if not np.allclose(matrix.sum(axis=1), 1.0, atol=1e-3):
            raise ValueError(f"the rows of ccm must sum to 1, not {matrix.sum(axis=1).tolist()}")
        matrix = np.diag(neutral) @ np.linalg.inv(matrix) @ np.linalg.inv(np.asarray(SRGB_TO_XYZ))
    if np.abs(matrix).max() >= 2000:
        raise ValueError(f"colour matrix entries must be below 2000, not {matrix.tolist()}")
    return matrix


def _rationals(values: Sequence[float] | np.ndarray, denominator: int = 1_000_000) -> list[int]:
    """Numerators and denominators, alternating; exact for decimals of up to 6 digits."""
    pairs = (Fraction(float(v)).limit_denominator(denominator) for v in values)
    return [part for f in pairs for part in (f.numerator, f.denominator)]


def _cfa_tags(
    shape: tuple[int, ...],
    pattern: str,
    levels: list[float],
    area: tuple[int, int, int, int] | None,
) -> list[Tag]:
    """The tags that are counted from the top left of ActiveArea: colours and black levels."""
    tags: list[Tag] = []
    top = left = 0
    if area is not None:
        top, left, bottom, right = (int(v) for v in area)
        inside = 0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]
        if not inside or min(bottom - top, right - left) < MIN_SIDE:
            raise ValueError(
                f"active_area must be (top, left, bottom, right), at least {MIN_SIDE} a side and "
                f"inside the {shape[0]}x{shape[1]} mosaic, not {area}"
            )
        tags.append((tiff.ACTIVE_AREA, "I", 4, (top, left, bottom, right)))
    sites = [(y + top) % 2 * 2 + (x + left) % 2 for y in (0, 1) for x in (0, 1)]
    colors = [_COLOR_CODES[pattern[s]] for s in sites]
    blacks = [levels[SITE_PLANES[pattern][s]] for s in sites]
    tags += [
        (tiff.CFA_REPEAT_PATTERN_DIM, "H", 2, (2, 2)),
        (tiff.CFA_PATTERN, "B", 4, tuple(colors)),
        (tiff.BLACK_LEVEL_REPEAT_DIM, "H", 2, (2, 2)),
        # 65534 x 10,000 still fits the 32 bits of a numerator.
        (tiff.BLACK_LEVEL, "2I", 4, _rationals(blacks, 10_000)),
    ]
    return tags


def _exposure_tags(seconds: float | None, iso: float | None) -> list[Tag]:
    """ExposureTime and ISOSpeedRatings in IFD 0, where TIFF/EP puts them."""
    tags: list[Tag] = []
    if seconds is not None:
        if not 1e-6 <= seconds <= 4000:
            raise ValueError(f"exposure_time must be 1e-6..4000 seconds, not {seconds!r}")
        tags.append((tiff.EXPOSURE_TIME, "2I", 1, _rationals([seconds])))
    if iso is not None:
        if iso != int(iso) or not 1 <= iso <= 65534:
            raise ValueError(f"iso must be an integer in 1..65534, not {iso!r}")
        tags.append((tiff.ISO_SPEED, "H", 1, int(iso)))
    return tags


def _write(path: Path, mosaic: np.ndarray, tags: list[Tag]) -> Path:
    """Write beside ``path``, then rename: readers see the old file or the whole new one."""
    try:
        import tifffile
    except ImportError as error:
        raise ImportError("write_dng needs tifffile: pip install isp-distill[images]") from error
    with replaced(path) as temporary, open(temporary, "wb") as file:
        tifffile.imwrite(
            file,
            np.ascontiguousarray(mosaic),
            photometric=tiff.PHOTOMETRIC_CFA,
            subfiletype=0,
            # One strip: LibRaw reads uncompressed data from the first offset on.
            rowsperstrip=mosaic.shape[0],
            metadata=None,
            software=False,
            extratags=[(*tag, True) for tag in tags],
        )
    return path
