"""The few TIFF tags that LibRaw does not pass on, read with the standard library alone.

Most RAW formats (DNG, NEF, CR2, ARW, PEF, ...) are TIFF files. LibRaw decodes them but keeps some
tags to itself (a DNG's own colour matrices, fractional black levels, where the pixel data should
end), so this module reads them again. It runs in the decode workers, which must start quickly and
survive damaged files: no optional dependency, and every count and offset is checked before use.

Tag numbers and types: TIFF 6.0, TIFF/EP (ISO 12234-2) and the DNG specification 1.7.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

Value = tuple[float, ...] | bytes
Directory = dict[int, Value]

NEW_SUBFILE_TYPE = 254
IMAGE_WIDTH = 256
IMAGE_LENGTH = 257
BITS_PER_SAMPLE = 258
COMPRESSION = 259
PHOTOMETRIC = 262
MAKE = 271
MODEL = 272
STRIP_OFFSETS = 273
ORIENTATION = 274
STRIP_BYTE_COUNTS = 279
TILE_OFFSETS = 324
TILE_BYTE_COUNTS = 325
SUB_IFDS = 330
SAMPLE_FORMAT = 339
CFA_REPEAT_PATTERN_DIM = 33421
CFA_PATTERN = 33422
EXPOSURE_TIME = 33434
EXIF_IFD = 34665
ISO_SPEED = 34855
DNG_VERSION = 50706
DNG_BACKWARD_VERSION = 50707
UNIQUE_CAMERA_MODEL = 50708
CFA_PLANE_COLOR = 50710
CFA_LAYOUT = 50711
BLACK_LEVEL_REPEAT_DIM = 50713
BLACK_LEVEL = 50714
BLACK_LEVEL_DELTA_H = 50715
BLACK_LEVEL_DELTA_V = 50716
WHITE_LEVEL = 50717
COLOR_MATRIX_1 = 50721
COLOR_MATRIX_2 = 50722
CAMERA_CALIBRATION_1 = 50723
CAMERA_CALIBRATION_2 = 50724
BASELINE_EXPOSURE = 50730
AS_SHOT_NEUTRAL = 50728
CALIBRATION_ILLUMINANT_1 = 50778
CALIBRATION_ILLUMINANT_2 = 50779
ACTIVE_AREA = 50829

PHOTOMETRIC_CFA = 32803
PHOTOMETRIC_LINEAR_RAW = 34892
ILLUMINANT_D65 = 21

_FORMATS = {1: "B", 3: "H", 4: "I", 5: "I", 6: "b", 8: "h", 9: "i", 10: "i", 11: "f", 12: "d"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_RATIONALS = (5, 10)
# A damaged count must not become a long read; a tiled 400-megapixel DNG has about 10,000 tiles.
_MAX_VALUE_BYTES = 1 << 20
_MAX_ENTRIES = 1000
_MAX_DIRECTORIES = 64


def read_directories(file: BinaryIO) -> list[Directory]:
    """Read the tags of every directory (IFD 0 and its chain, SubIFDs, EXIF) of a TIFF file.

    Args:
        file: a seekable binary file; its position is moved.

    Returns:
        One ``{tag: values}`` per directory, IFD 0 first; an empty list where the file is not a
        classic TIFF. Numbers come as a tuple of int or float (rationals divided, a zero
        denominator dropping the tag), text and undefined data as bytes. What is damaged is left
        out, never raised: LibRaw has the last word on whether a file can be used.

    Raises:
        OSError: the file cannot be read.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(8)
    # 42 is TIFF; Olympus (RO, RS) and Panasonic (0x55) put other numbers in its place.
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return []
    pending = [struct.unpack(order + "I", head[4:8])[0]]
    seen: set[int] = set()
    directories: list[Directory] = []
    while pending and len(directories) < _MAX_DIRECTORIES:
        offset = pending.pop(0)
        if offset in seen or not 8 <= offset <= size - 6:
            continue
        seen.add(offset)
        directory, following = _read_directory(file, order, offset, size)
        directories.append(directory)
        for tag in (SUB_IFDS, EXIF_IFD):
            pending += integers(directory, tag)
        pending.append(following)
    return directories


def _read_directory(file: BinaryIO, order: str, offset: int, size: int) -> tuple[Directory, int]:
    """One directory at ``offset``, and the offset of the next (0: none)."""
    file.seek(offset)
    count = min(struct.unpack(order + "H", file.read(2))[0], _MAX_ENTRIES)
    block = file.read(12 * count + 4)
    directory: Directory = {}
    for start in range(0, min(12 * count, len(block) - 11), 12):
        tag, kind, length = struct.unpack_from(order + "HHI", block, start)
        nbytes = _SIZES.get(kind, 0) * length
        if not 0 < nbytes <= _MAX_VALUE_BYTES:
            continue
        if nbytes <= 4:
            data = block[start + 8 : start + 8 + nbytes]
        else:
            position = struct.unpack_from(order + "I", block, start + 8)[0]
            if position + nbytes > size:
                continue
            file.seek(position)
            data = file.read(nbytes)
        value = _decode(order, kind, data)
        if value is not None:
            directory.setdefault(tag, value)
    tail = block[12 * count : 12 * count + 4]
    return directory, struct.unpack(order + "I", tail)[0] if len(tail) == 4 else 0


def _decode(order: str, kind: int, data: bytes) -> Value | None:
    """The value of one tag, or None where a rational divides by zero."""
    if kind in (2, 7):
        return data
    code = "I" if kind == 13 else _FORMATS[kind]
    values = struct.unpack(f"{order}{len(data) // struct.calcsize(code)}{code}", data)
    if kind not in _RATIONALS:
        return values
    tops, bottoms = values[::2], values[1::2]
    if 0 in bottoms:
        return None
    return tuple(top / bottom for top, bottom in zip(tops, bottoms, strict=True))


def numbers(directory: Directory, tag: int) -> tuple[float, ...] | None:
    """The tag's numbers, or None where it is absent or is not numeric."""
    value = directory.get(tag)
    return value if isinstance(value, tuple) else None


def integers(directory: Directory, tag: int) -> tuple[int, ...]:
    """The tag's integers; empty where it is absent or of another type (a float may be NaN)."""
    values = numbers(directory, tag) or ()
    return tuple(v for v in values if isinstance(v, int))


def find(directories: list[Directory], tag: int) -> tuple[float, ...] | None:
    """The tag's numbers in the first directory that has it, or None."""
    return next((v for d in directories if (v := numbers(d, tag)) is not None), None)


def find_text(directories: list[Directory], tag: int) -> str:
    """The tag's text in the first directory that has it, stripped; "" where none has."""
    for directory in directories:
        value = directory.get(tag)
        if isinstance(value, bytes):
            return value.split(b"\0")[0].decode("utf-8", "replace").strip()
    return ""


def is_dng(directories: list[Directory]) -> bool:
    """Whether the file calls itself a DNG (it has a DNGVersion tag)."""
    return bool(directories) and DNG_VERSION in directories[0]


def raw_directory(directories: list[Directory]) -> Directory:
    """The directory of the sensor data: the first with a CFA or LinearRaw photometric; else {}."""
    for wanted in (PHOTOMETRIC_CFA, PHOTOMETRIC_LINEAR_RAW):
        for directory in directories:
            if integers(directory, PHOTOMETRIC) == (wanted,):
                return directory
    return {}


def missing_bytes(directory: Directory, size: int) -> int:
    """How many bytes of pixel data the directory promises beyond the end of the file.

    LibRaw does not always notice: a file cut by less than its read buffer decodes to a padded
    mosaic. StripByteCounts may be damaged as well, so uncompressed data in one strip is also held
    against height x width x bits.

    Args:
        directory: the directory of the sensor data.
        size: the file's size in bytes.

    Returns:
        0 where everything is there, or where the directory does not say.
    """
    end = 0
    for offset_tag, count_tag in (
        (STRIP_OFFSETS, STRIP_BYTE_COUNTS),
        (TILE_OFFSETS, TILE_BYTE_COUNTS),
    ):
        offsets = integers(directory, offset_tag)
        counts = integers(directory, count_tag)
        for offset, count in zip(offsets, counts, strict=False):
            end = max(end, offset + count)
        if len(offsets) == 1 and offset_tag == STRIP_OFFSETS:
            shape = [integers(directory, t) for t in (IMAGE_WIDTH, IMAGE_LENGTH, BITS_PER_SAMPLE)]
            if integers(directory, COMPRESSION) == (1,) and all(shape):
                width, height, bits = (s[0] for s in shape)
                end = max(end, offsets[0] + width * height * bits // 8)
    return max(0, end - size)
