"""The camera's own frame: which part of the mosaic its pictures show.

A sensor has more rows and columns than a camera's JPEG, and what LibRaw calls the visible area is
mostly larger as well. Whoever draws on a camera's picture draws on its default crop.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from isp_distill.raw import tiff

#: Top, left, height and width within the mosaic, in its rows and columns; odd numbers too.
Rectangle = tuple[int, int, int, int]
#: Over which part of the mosaic label maps lie; None decides by their shape.
Frame = Literal["default_crop", "visible"] | None
FRAMES = ("default_crop", "visible", None)

DEFAULT_CROP_ORIGIN = 50719
DEFAULT_CROP_SIZE = 50720
# What LibRaw gives for a crop that it does not know; 0 means the same.
_UNKNOWN = 65535
# So many sites a side may be missing: LibRaw drops an odd margin, and we an odd last row or column.
_CUT = 2


def default_crop_of(
    directory: tiff.Directory, sizes: Any, height: int, width: int
) -> tuple[Rectangle | None, str | None]:
    """The default crop within the mosaic, and a warning where the file's is outside of it.

    A DNG's own DefaultCropOrigin and DefaultCropSize (counted from ActiveArea, fractions rounded)
    come first, because LibRaw truncates the fractions and moves odd active areas; then LibRaw's,
    which it takes from the makers' notes.

    Args:
        directory: the tags of the sensor data; empty where the file is no DNG.
        sizes: LibRaw's sizes of the file (rawpy's ``ImageSizes``).
        height: rows of the mosaic, which begins at LibRaw's margins.
        width: its columns.
    """
    origin, size = (tiff.numbers(directory, t) for t in (DEFAULT_CROP_ORIGIN, DEFAULT_CROP_SIZE))
    if size is not None and len(size) == 2 and all(map(math.isfinite, size)):
        if origin is None or len(origin) != 2 or not all(map(math.isfinite, origin)):
            origin = (0.0, 0.0)
        area = tiff.integers(directory, tiff.ACTIVE_AREA)
        area = area if len(area) == 4 else (0, 0, 0, 0)
        # These tags give the column first, ActiveArea the row.
        top = round(origin[1]) + area[0] - sizes.top_margin
        left = round(origin[0]) + area[1] - sizes.left_margin
        rows, columns = round(size[1]), round(size[0])
    else:
        numbers = [
            getattr(sizes, f"crop_{name}", 0)
            for name in ("top_margin", "left_margin", "height", "width")
        ]
        if _UNKNOWN in numbers or 0 in numbers[2:]:
            return None, None
        top, left = numbers[0] - sizes.top_margin, numbers[1] - sizes.left_margin
        rows, columns = numbers[2:]
    inside = (
        -_CUT <= top < top + rows <= height + _CUT
        and -_CUT <= left < left + columns <= width + _CUT
    )
    found = _intersection((top, left, rows, columns), height, width) if inside else None
    if found is None:
        return None, (
            f"its default crop, {columns} x {rows} at ({left}, {top}), is not inside the visible "
            f"{width} x {height}; it is ignored"
        )
    return found, None


def checked_rectangle(crop: Any, height: int, width: int) -> Rectangle:
    """A default crop as four whole numbers.

    Raises:
        ValueError: it is none, or leaves the mosaic.
    """
    try:
        top, left, rows, columns = (int(v) for v in crop)
        exact = (top, left, rows, columns) == tuple(crop)
    except (TypeError, ValueError):
        exact = False
    if not exact:
        raise ValueError(
            f"default_crop must be (top, left, height, width), whole numbers, not {crop!r}"
        )
    if (
        min(top, left) < 0
        or min(rows, columns) < 1
        or top + rows > height
        or left + columns > width
    ):
        raise ValueError(f"default_crop {crop} leaves the mosaic ({height}x{width})")
    return top, left, rows, columns


def checked_frame(frame: Frame) -> Frame:
    """The frame of label maps, if there is one of that name.

    Raises:
        ValueError: there is no such frame.
    """
    if frame not in FRAMES:
        raise ValueError(f'frame must be "default_crop", "visible" or None, not {frame!r}')
    return frame


def cropped(crop: Rectangle | None, top: int, left: int, height: int, width: int) -> (
    Rectangle | None
):  # fmt: skip
    """The default crop within a part of the mosaic; None where the part does not hold all of it.

    A map that was drawn over the whole crop would lie over less of it.
    """
    if crop is None:
        return None
    moved = (crop[0] - top, crop[1] - left, crop[2], crop[3])
    return moved if _intersection(moved, height, width) == moved else None


def upright(crop: Rectangle | None, orientation: int, height: int, width: int) -> Rectangle | None:
    """The default crop after the EXIF orientation of a mosaic of this size was applied."""
    if crop is None:
        return None
    top, left, rows, columns = crop
    if orientation in (3, 4, 6, 7):
        top = height - top - rows
    if orientation in (2, 3, 7, 8):
        left = width - left - columns
    return (left, top, columns, rows) if orientation >= 5 else (top, left, rows, columns)


def binned(crop: Rectangle | None, factor: int, height: int, width: int) -> Rectangle | None:
    """The default crop within a mosaic that was binned, its edges rounded to whole sites.

    Args:
        crop: within the mosaic before.
        factor: sites of one colour averaged per side.
        height: rows of the binned mosaic.
        width: its columns.
    """
    if crop is None:
        return None
    edges = [round(v / factor) for v in (crop[0], crop[1], crop[0] + crop[2], crop[1] + crop[3])]
    return _intersection(
        (edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1]), height, width
    )


def _intersection(crop: Rectangle, height: int, width: int) -> Rectangle | None:
    """What of a rectangle lies in the mosaic; None for nothing."""
    top, left = max(crop[0], 0), max(crop[1], 0)
    bottom, right = min(crop[0] + crop[2], height), min(crop[1] + crop[3], width)
    return (top, left, bottom - top, right - left) if top < bottom and left < right else None
