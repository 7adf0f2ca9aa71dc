"""What a ``RawImage`` may be made of: each field brought to its one form, or refused by name.

People make mosaics of their own, so a number stands for four levels, a list for a tuple and a numpy
scalar for a float. Whatever would silently change a value is refused with the way to do it right.
This module does not import torch: decode workers load it.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from isp_distill.raw.filters import GREY, Matrix, filter_of, is_bayer, name_of, number_of
from isp_distill.raw.metadata import IDENTITY, Blacks, Gains
from isp_distill.raw.packings import PACKED, row_bytes


def mosaic_of(mosaic: Any) -> np.ndarray:
    """The mosaic as C-contiguous uint16 [H, W], both even.

    Conversions that keep every value are made: to contiguous memory, from uint8 to 16 bits, to the
    machine's byte order. No other type is converted.

    Raises:
        TypeError: it is no numpy array.
        ValueError: it has another type or shape; the message says how to convert it.
    """
    if not isinstance(mosaic, np.ndarray):
        raise TypeError(
            f"mosaic is a {type(mosaic).__name__}, not a numpy array: give uint16 [H, W]"
        )
    if mosaic.ndim != 2:
        hint = "take one frame, or one channel, of it"
        if mosaic.ndim == 3 and mosaic.shape[2] in (3, 4):
            hint = "that is a picture, not a mosaic: see unprocess"
        raise ValueError(f"mosaic has shape {list(mosaic.shape)}, not [H, W]; {hint}")
    height, width = mosaic.shape
    if min(height, width) < 2:
        raise ValueError(f"mosaic must be at least 2x2, not {height}x{width}")
    if mosaic.dtype.newbyteorder("=") not in (np.uint16, np.uint8):
        raise ValueError(f"mosaic is {mosaic.dtype}, not uint16; {_conversion(mosaic)}")
    if height % 2 or width % 2:
        raise ValueError(
            f"mosaic height and width must be even, not {height}x{width}; cut the last row or "
            f"column off: mosaic[:{height // 2 * 2}, :{width // 2 * 2}]"
        )
    return np.ascontiguousarray(mosaic, dtype=np.uint16)


def packed_mosaic_of(mosaic: Any, packing: Any, width: Any) -> np.ndarray:
    """The bytes of a packed mosaic as C-contiguous uint8 [H, bytes], H and the width even.

    Raises:
        TypeError: it is no numpy array, or the width no whole number.
        ValueError: there is no such packing, one of packing and width is missing, or the array
            has another type or shape.
    """
    if packing not in PACKED:
        raise ValueError(f"packing must be one of {', '.join(PACKED)} or None, not {packing!r}")
    if width is None:
        raise ValueError(f"packing={packing!r} needs packed_width, the pixels of a row")
    if isinstance(width, bool) or not isinstance(width, numbers.Integral):
        raise TypeError(f"packed_width must be a whole number, not {width!r}")
    width = int(width)
    if not isinstance(mosaic, np.ndarray):
        raise TypeError(
            f"mosaic is a {type(mosaic).__name__}, not a numpy array: give uint8 [H, bytes]"
        )
    needed = max(1, row_bytes(width, packing))
    if mosaic.dtype != np.uint8 or mosaic.ndim != 2 or mosaic.shape[1] < needed:
        raise ValueError(
            f"a mosaic of {width} columns packed as {packing} is uint8 [H, {needed} or more], not "
            f"{mosaic.dtype} {list(mosaic.shape)}; codes have packing=None, packed_width=None"
        )
    if width % 2 or mosaic.shape[0] % 2 or min(width, mosaic.shape[0]) < 2:
        raise ValueError(
            f"mosaic height and width must be even, not {mosaic.shape[0]}x{width}: unpack it "
            "(isp_distill.raw.packings.unpack_rows) and cut the last row or column off"
        )
    return np.ascontiguousarray(mosaic)


def _conversion(mosaic: np.ndarray) -> str:
    """How to make uint16 of another type without changing what the values mean."""
    if mosaic.dtype.kind == "f":
        return (
            "a cast would cut the fractions off: scale mosaic, black and white so that white is "
            "some thousands, and round: "
            "np.rint(mosaic * scale).clip(0, 65535).astype(np.uint16)"
        )
    if mosaic.dtype.kind not in "iu":
        return "give numbers of 16 bits"
    low, high = int(mosaic.min()), int(mosaic.max())
    if low < 0:
        return (
            f"it has values down to {low}, which would wrap: add an offset to the mosaic, to black "
            "and to white, then use mosaic.astype(np.uint16)"
        )
    if high > 65535:
        return (
            f"it has values up to {high}, which would wrap: divide the mosaic, black and white so "
            "that it stays below 65536, then use mosaic.astype(np.uint16)"
        )
    return f"its values, {low} to {high}, fit: use mosaic.astype(np.uint16)"


def black_of(black: Any) -> Blacks:
    """Black levels of R, Gr, Gb, B; one number stands for all four.

    Raises:
        TypeError, ValueError: not one or four finite numbers.
    """
    levels = _numbers("black", black, 4, "one level or four (R, Gr, Gb, B)")
    return levels[0], levels[1], levels[2], levels[3]


def white_of(white: Any, black: Blacks) -> float:
    """The white level, above every black level.

    Raises:
        TypeError, ValueError: not one finite number, or not above black.
    """
    level = number("white", white)
    if not level > max(black):
        raise ValueError(f"white {level:g} must be above every black level {list(black)}")
    return level


def white_balance_of(gains: Any) -> Gains:
    """Gains of R, G, B; one number stands for all three.

    Raises:
        TypeError, ValueError: not one or three finite positive numbers.
    """
    values = _numbers("white_balance", gains, 3, "one gain or three (R, G, B)")
    if not min(values) > 0:
        raise ValueError(f"white_balance gains must be positive, not {list(values)}")
    return values[0], values[1], values[2]


def pattern_of(pattern: Any) -> str:
    """The pattern's name, as :data:`isp_distill.raw.filters.NAMES` writes it.

    Raises:
        ValueError: there is none of this name.
    """
    return name_of(number_of(pattern))


def ccm_of(matrix: Any, pattern: str) -> Matrix | None:
    """The colour matrix as a tuple of three rows.

    None stays None where only the camera's maker knows it; for Bayer it is the identity, for mono
    three equal channels.

    Raises:
        TypeError, ValueError: not 3x3 finite numbers, or 3x4 for a filter of four colours; or a
            matrix of mono, which has no colours.
    """
    columns = filter_of(pattern).columns
    # A default goes with the pattern that it is the default of, not with the one it is replaced by.
    if matrix is None or matrix is IDENTITY or matrix is GREY:
        return IDENTITY if is_bayer(pattern) else GREY if columns == 1 else None
    try:
        values = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"ccm must be 3x{columns} numbers, not {matrix!r}") from error
    if columns == 1:
        if values.tolist() != [list(row) for row in GREY]:
            raise ValueError("a mono sensor has no colours: give no ccm")
        return GREY
    if values.shape != (3, columns):
        raise ValueError(
            f"ccm has shape {list(values.shape)}, not [3, {columns}], and the pattern is {pattern}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"ccm has values that are not finite: {values.tolist()}")
    return tuple(tuple(float(value) for value in row) for row in values)


def check_sites_alike(pattern: str, black: Blacks, gains: Gains, maps: np.ndarray | None) -> None:
    """Refuse what would tell the four sites of a mono sensor apart: no colour goes with it.

    Raises:
        ValueError: black levels, gains or the planes of the gain map differ.
    """
    if filter_of(pattern).columns != 1:
        return
    for name, values in (("black", black), ("white_balance", gains)):
        if len(set(values)) > 1:
            raise ValueError(f"{name} of a mono sensor is one number, not {list(values)}")
    if maps is not None and not (maps == maps[:1]).all():
        raise ValueError("the four planes of a mono sensor's gain map must be equal")


def orientation_of(orientation: Any) -> int:
    """The EXIF orientation.

    Raises:
        ValueError: not an integer of 1..8.
    """
    if (
        isinstance(orientation, bool)
        or not isinstance(orientation, numbers.Integral)
        or int(orientation) not in range(1, 9)
    ):
        raise ValueError(f"orientation must be an EXIF one, 1..8, not {orientation!r}")
    return int(orientation)


def default_crop_of(crop: Any) -> tuple[int, int, int, int] | None:
    """The default crop: top, left, height, width; None stays None.

    Raises:
        ValueError: not four integers of which the sizes are positive.
    """
    if crop is None:
        return None
    values = tuple(crop) if isinstance(crop, (tuple, list, np.ndarray)) else ()
    whole = all(isinstance(v, numbers.Integral) for v in values)
    if len(values) != 4 or not whole or values[2] < 1 or values[3] < 1:
        raise ValueError(
            f"default_crop must be 4 integers (top, left, height, width), not {crop!r}"
        )
    return int(values[0]), int(values[1]), int(values[2]), int(values[3])


def number(name: str, value: Any) -> float:
    """One finite number, as a float.

    Raises:
        TypeError: not a number.
        ValueError: NaN or infinite.
    """
    return _numbers(name, value, 1, "one number")[0]


def positive_or_none(name: str, value: Any) -> float | None:
    """One finite positive number, as a float; None stays None.

    Raises:
        TypeError, ValueError: another value.
    """
    if value is None:
        return None
    result = number(name, value)
    if not result > 0:
        raise ValueError(f"{name} must be positive, or None, not {value!r}")
    return result


def _numbers(name: str, value: Any, count: int, wanted: str) -> tuple[float, ...]:
    """``count`` finite floats from that many numbers or from one."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "iuf":
            raise TypeError
        flat = [float(v) for v in array.ravel()]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be {wanted}, not {value!r}") from error
    if array.ndim > 1 or len(flat) not in (1, count):
        raise ValueError(f"{name} has shape {list(array.shape)}: it must be {wanted}")
    if not all(math.isfinite(v) for v in flat):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return tuple(flat * count if len(flat) == 1 else flat)
