"""Black levels from a DNG's own tags, and the tags that must be sound where they are there.

LibRaw rounds fractions, spreads BlackLevelDeltaH and V over the whole frame, takes a damaged tag
for an absent one (black 0), and rounds an odd ActiveArea margin up to an even one without moving
the 2x2 of black levels along, so that unequal blacks land on the wrong colours.

Source: the DNG specification 1.7, chapter 4 (BlackLevelRepeatDim, BlackLevel, BlackLevelDeltaH,
BlackLevelDeltaV, WhiteLevel, ActiveArea).
"""

from __future__ import annotations

import numpy as np

from isp_distill.raw import tiff
from isp_distill.raw.metadata import SITE_PLANES, Blacks
from isp_distill.raw.tiff import TagError

# What the pixels and their levels depend on. A damaged one must not read as an absent one.
_SENSOR_TAGS = {
    tiff.NEW_SUBFILE_TYPE: "NewSubFileType",
    tiff.IMAGE_WIDTH: "ImageWidth",
    tiff.IMAGE_LENGTH: "ImageLength",
    tiff.BITS_PER_SAMPLE: "BitsPerSample",
    tiff.COMPRESSION: "Compression",
    tiff.SAMPLE_FORMAT: "SampleFormat",
    tiff.STRIP_OFFSETS: "StripOffsets",
    tiff.STRIP_BYTE_COUNTS: "StripByteCounts",
    tiff.TILE_OFFSETS: "TileOffsets",
    tiff.TILE_BYTE_COUNTS: "TileByteCounts",
    tiff.CFA_REPEAT_PATTERN_DIM: "CFARepeatPatternDim",
    tiff.CFA_LAYOUT: "CFALayout",
    tiff.LINEARIZATION_TABLE: "LinearizationTable",
    tiff.BLACK_LEVEL_REPEAT_DIM: "BlackLevelRepeatDim",
    tiff.BLACK_LEVEL: "BlackLevel",
    tiff.BLACK_LEVEL_DELTA_H: "BlackLevelDeltaH",
    tiff.BLACK_LEVEL_DELTA_V: "BlackLevelDeltaV",
    tiff.WHITE_LEVEL: "WhiteLevel",
    tiff.ACTIVE_AREA: "ActiveArea",
}
# TIFF/EP writers give these as bytes or as undefined data; both are read.
_SENSOR_BYTES = {tiff.CFA_PATTERN: "CFAPattern", tiff.CFA_PLANE_COLOR: "CFAPlaneColor"}
# What the colours and the way up depend on; the tags of IFD 0.
_PICTURE_TAGS = {
    tiff.ORIENTATION: "Orientation",
    tiff.COLOR_MATRIX_1: "ColorMatrix1",
    tiff.COLOR_MATRIX_2: "ColorMatrix2",
    tiff.CAMERA_CALIBRATION_1: "CameraCalibration1",
    tiff.CAMERA_CALIBRATION_2: "CameraCalibration2",
    tiff.CALIBRATION_ILLUMINANT_1: "CalibrationIlluminant1",
    tiff.CALIBRATION_ILLUMINANT_2: "CalibrationIlluminant2",
    tiff.ANALOG_BALANCE: "AnalogBalance",
    tiff.AS_SHOT_NEUTRAL: "AsShotNeutral",
    tiff.AS_SHOT_WHITE_XY: "AsShotWhiteXY",
}


def check_tags(sensor: tiff.Directory, directories: list[tiff.Directory]) -> None:
    """Refuse a DNG with a tag that a picture depends on and that cannot be read.

    Args:
        sensor: the directory of the sensor data.
        directories: all directories of the file.

    Raises:
        TagError: such a tag has an unknown type, a count of 0 or beyond the file, a rational that
            divides by zero, or a value that is not finite; or ActiveArea is no area.
    """
    for tag, name in _SENSOR_TAGS.items():
        tiff.required(sensor, tag, name)
    _area(sensor)
    for tag, name in _SENSOR_BYTES.items():
        if not isinstance(sensor.get(tag), bytes):
            tiff.required(sensor, tag, name)
    for directory in (*directories[:1], sensor):
        for tag, name in _PICTURE_TAGS.items():
            tiff.required(directory, tag, name)


def black_of_dng(
    directory: tiff.Directory, top: int, left: int, pattern: str, libraw: Blacks
) -> tuple[Blacks, str | None]:
    """Black levels, R, Gr, Gb, B, from a DNG's own tags, and a warning where they are a mean.

    The pattern of BlackLevel and the deltas start at the top left of ActiveArea. Patterns and
    deltas that are longer than the 2x2 of the colours are averaged over the rows and columns of
    each parity.

    Args:
        directory: the tags of the sensor data.
        top: first row of the visible area, on the sensor.
        left: first column of the visible area, on the sensor.
        pattern: the pattern of the visible area.
        libraw: what to return where the file has none of these tags.

    Raises:
        TagError: a tag cannot be read, or its number of values has no meaning.
    """
    levels = _levels(directory)
    columns = _delta(directory, tiff.BLACK_LEVEL_DELTA_H, "BlackLevelDeltaH", 1)
    rows = _delta(directory, tiff.BLACK_LEVEL_DELTA_V, "BlackLevelDeltaV", 0)
    if levels is None and columns is None and rows is None:
        return libraw, None
    period = np.zeros((1, 1)) if levels is None else levels
    shift_y, shift_x = _shift(directory, top, left)
    # Twice, so that a period of odd length has both parities.
    period = np.tile(period, (2, 2))
    black = [0.0] * 4
    for site, plane in enumerate(SITE_PLANES[pattern]):
        y, x = (site // 2 + shift_y) % 2, (site % 2 + shift_x) % 2
        level = period[y::2, x::2].mean()
        for deltas, parity in ((columns, x), (rows, y)):
            level += 0.0 if deltas is None else deltas[parity::2].mean()
        black[plane] = float(level)
    uneven = [
        name
        for name, deltas in (("BlackLevelDeltaH", columns), ("BlackLevelDeltaV", rows))
        if deltas is not None and (deltas[2:] != deltas[:-2]).any()
    ]
    note = None
    if uneven:
        note = f"{' and '.join(uneven)} vary over the frame; using the mean for each colour"
    return (black[0], black[1], black[2], black[3]), note


def _levels(directory: tiff.Directory) -> np.ndarray | None:
    """BlackLevel as a period, float64 [rows, columns]; None where the file has none.

    Converters write four levels without BlackLevelRepeatDim, and one level with a 2x2
    BlackLevelRepeatDim. Both have one meaning only.
    """
    values = tiff.required(directory, tiff.BLACK_LEVEL, "BlackLevel")
    repeat = tiff.required(directory, tiff.BLACK_LEVEL_REPEAT_DIM, "BlackLevelRepeatDim", (2,))
    if values is None:
        return None
    rows, columns = (1, 1) if repeat is None else repeat
    if int(rows) != rows or int(columns) != columns or min(rows, columns) < 1:
        raise TagError(f"its BlackLevelRepeatDim tag is {rows:g} x {columns:g}")
    if len(values) == rows * columns:
        shape = (int(rows), int(columns))
    elif len(values) in (1, 4):
        shape = (1, 1) if len(values) == 1 else (2, 2)
    else:
        raise TagError(
            f"its BlackLevel tag has {len(values)} values for a period of {rows:g} x {columns:g}"
        )
    return np.asarray(values, dtype=np.float64).reshape(shape)


def _delta(directory: tiff.Directory, tag: int, name: str, axis: int) -> np.ndarray | None:
    """One delta for each column or row of ActiveArea, at least two; None where there are none.

    A list of another length is taken where its values repeat from pixel to pixel or with the 2x2
    of the colours, since its meaning is plain then.
    """
    values = tiff.required(directory, tag, name)
    if values is None:
        return None
    deltas = np.asarray(values, dtype=np.float64)
    if len(deltas) == 1:
        return np.repeat(deltas, 2)
    area = _area(directory)
    size = tiff.integers(directory, tiff.IMAGE_WIDTH if axis else tiff.IMAGE_LENGTH)
    extent = area[2 + axis] - area[axis] if area else (*size, 0)[0]
    if len(deltas) != extent and (deltas[2:] != deltas[:-2]).any():
        raise TagError(
            f"its {name} tag has {len(deltas)} values for {extent} "
            f"{'columns' if axis else 'rows'} of ActiveArea"
        )
    return deltas


def _area(directory: tiff.Directory) -> tuple[int, ...] | None:
    """ActiveArea: top, left, bottom, right; None where the file has none."""
    area = tiff.required(directory, tiff.ACTIVE_AREA, "ActiveArea", (4,))
    if area is None:
        return None
    top, left, bottom, right = (int(v) for v in area)
    if not (0 <= top < bottom and 0 <= left < right):
        raise TagError(f"its ActiveArea tag is {top}, {left}, {bottom}, {right}")
    return top, left, bottom, right


def _shift(directory: tiff.Directory, top: int, left: int) -> tuple[int, int]:
    """Rows and columns from the corner of ActiveArea to the corner of the visible area."""
    area = _area(directory) or (0, 0)
    if top < area[0] or left < area[1]:
        raise TagError(
            f"its ActiveArea tag begins at ({area[0]}, {area[1]}), after the visible area "
            f"at ({top}, {left})"
        )
    return top - area[0], left - area[1]
