"""The few TIFF tags that LibRaw does not pass on, read with the standard library alone.

Most RAW formats (DNG, NEF, CR2, ARW, PEF, ...) are TIFF files. LibRaw decodes them but keeps some
tags to itself (a DNG's own colour matrices, fractional black levels, where the pixel data should
end), so this module reads them again. It runs in the decode workers, which must start quickly and
survive damaged files: every count and offset is checked before use.

It is written by hand because tifffile takes a damaged tag for an absent one: ``TiffFile`` logs an
entry of an unknown type or beyond the file and drops it, so a damaged black level would read as a
black of 0. It also loads text, strip offsets and a whole EXIF directory before anyone can look at
their counts. Its ``TiffTag`` alone can be made safe, and then saves nothing: the walk over the
directories, the limits and the conversions stay. Pillow drops damaged tags as well.

Tag numbers and types: TIFF 6.0, TIFF/EP (ISO 12234-2) and the DNG specification 1.7.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import BinaryIO


class TagError(ValueError):
    """A tag is there and cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class Unreadable:
    """Stands for the value of a tag that is there but cannot be read.

    A damaged tag must not be taken for an absent one: absent has a meaning (a black level of 0).
    """

    reason: str


Value = tuple[float, ...] | bytes | Unreadable
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
SAMPLES_PER_PIXEL = 277
ROWS_PER_STRIP = 278
STRIP_BYTE_COUNTS = 279
PREDICTOR = 317
TILE_WIDTH = 322
TILE_LENGTH = 323
TILE_OFFSETS = 324
TILE_BYTE_COUNTS = 325
SUB_IFDS = 330
SAMPLE_FORMAT = 339
CFA_REPEAT_PATTERN_DIM = 33421
CFA_PATTERN = 33422
EXPOSURE_TIME = 33434
EXIF_IFD = 34665
ISO_SPEED = 34855
SENSITIVITY_TYPE = 34864
STANDARD_OUTPUT_SENSITIVITY = 34865
RECOMMENDED_EXPOSURE_INDEX = 34866
ISO_SPEED_LONG = 34867
DNG_VERSION = 50706
DNG_BACKWARD_VERSION = 50707
UNIQUE_CAMERA_MODEL = 50708
CFA_PLANE_COLOR = 50710
CFA_LAYOUT = 50711
LINEARIZATION_TABLE = 50712
BLACK_LEVEL_REPEAT_DIM = 50713
BLACK_LEVEL = 50714
BLACK_LEVEL_DELTA_H = 50715
BLACK_LEVEL_DELTA_V = 50716
WHITE_LEVEL = 50717
COLOR_MATRIX_1 = 50721
COLOR_MATRIX_2 = 50722
CAMERA_CALIBRATION_1 = 50723
CAMERA_CALIBRATION_2 = 50724
ANALOG_BALANCE = 50727
AS_SHOT_NEUTRAL = 50728
AS_SHOT_WHITE_XY = 50729
BASELINE_EXPOSURE = 50730
CALIBRATION_ILLUMINANT_1 = 50778
CALIBRATION_ILLUMINANT_2 = 50779
ACTIVE_AREA = 50829

PHOTOMETRIC_CFA = 32803
PHOTOMETRIC_LINEAR_RAW = 34892
ILLUMINANT_D65 = 21

#: Refuse headers that promise more than this. The largest Bayer mosaics have about 250 megapixels;
#: a damaged width or height easily reaches 4,000.
MAX_PIXELS = 512_000_000

# struct's letters of TIFF's types, from 1 (BYTE) to 13 (IFD); a rational is two integers.
_TYPES = dict(
    enumerate(("B", "s", "H", "I", "II", "b", "s", "h", "i", "ii", "f", "d", "I"), start=1)
)
_SIZES = {kind: struct.calcsize(f"<{letters}") for kind, letters in _TYPES.items()}
_BIG_TIFF = 43
# A damaged count must not become a long read; a tiled 400-megapixel DNG has about 10,000 tiles.
_MAX_VALUE_BYTES = 1 << 20
# A thousand entries may all point at the same megabyte, and a byte becomes eight in a tuple.
_MAX_FILE_BYTES = 16 << 20
_MAX_ENTRIES = 1000
_MAX_DIRECTORIES = 64


@dataclass
class _Source:
    """An open file: its byte order for struct, its size, and what may still be read of it."""

    file: BinaryIO
    order: str
    size: int
    budget: int = _MAX_FILE_BYTES


def read_directories(file: BinaryIO) -> list[Directory]:
    """Read the tags of every directory (IFD 0 and its chain, SubIFDs, EXIF) of a TIFF file.

    At most 64 directories of 1000 tags and 16 MiB of values are read, whatever the file says.

    Args:
        file: a seekable binary file; its position is moved.

    Returns:
        One ``{tag: values}`` per directory, IFD 0 first; an empty list where the file is not a
        classic TIFF. Numbers come as a tuple of int or float (rationals divided, a zero
        denominator makes the tag unreadable), text and undefined data as bytes. A tag that cannot
        be read is there as an :class:`Unreadable`, never raised: most tags of a file are of no
        interest. :func:`required` raises for those that are.

    Raises:
        OSError: the file cannot be read.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(8)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return []
    # 42 is TIFF; Olympus (RO, RS) and Panasonic (0x55) put other numbers in its place.
    version, first = struct.unpack(order + "HI", head[2:])
    if version == _BIG_TIFF:
        return []
    source = _Source(file, order, size)
    pending = [first]
    seen: set[int] = set()
    directories: list[Directory] = []
    while pending and len(directories) < _MAX_DIRECTORIES:
        offset = pending.pop(0)
        if offset in seen or not 8 <= offset <= size - 6:
            continue
        seen.add(offset)
        directory, following = _read_directory(source, offset)
        directories.append(directory)
        for tag in (SUB_IFDS, EXIF_IFD):
            pending += integers(directory, tag)[:_MAX_DIRECTORIES]
        pending.append(following)
    return directories


def _read_directory(source: _Source, offset: int) -> tuple[Directory, int]:
    """One directory at ``offset``, and the offset of the next (0: none)."""
    source.file.seek(offset)
    count = min(struct.unpack(source.order + "H", source.file.read(2))[0], _MAX_ENTRIES)
    block = source.file.read(12 * count + 4)
    directory: Directory = {}
    for start in range(0, min(12 * count, len(block) - 11), 12):
        tag, kind, length = struct.unpack_from(source.order + "HHI", block, start)
        if tag not in directory:
            directory[tag] = _value(source, kind, length, block[start + 8 : start + 12])
    tail = block[12 * count : 12 * count + 4]
    return directory, struct.unpack(source.order + "I", tail)[0] if len(tail) == 4 else 0


def _value(source: _Source, kind: int, length: int, field: bytes) -> Value:
    """The value of one entry, whose last four bytes are ``field``."""
    if kind not in _TYPES:
        return Unreadable(f"has a type of {kind}, which TIFF does not know")
    nbytes = _SIZES[kind] * length
    if not 0 < nbytes <= _MAX_VALUE_BYTES:
        return Unreadable(f"has a count of {length}")
    if nbytes <= 4:
        return _decode(source.order, kind, field[:nbytes])
    (position,) = struct.unpack(source.order + "I", field)
    if position + nbytes > source.size:
        return Unreadable(f"has {length} values at {position}, beyond the end of the file")
    if nbytes > source.budget:
        return Unreadable(f"comes after {_MAX_FILE_BYTES} bytes of other tags")
    source.budget -= nbytes
    source.file.seek(position)
    return _decode(source.order, kind, source.file.read(nbytes))


def _decode(order: str, kind: int, data: bytes) -> Value:
    """The value of one tag from its bytes."""
    letters = _TYPES[kind]
    if letters == "s":
        return data
    count = len(data) // _SIZES[kind] * len(letters)
    values = struct.unpack(f"{order}{count}{letters[0]}", data)
    if len(letters) == 1:
        return values
    tops, bottoms = values[::2], values[1::2]
    if 0 in bottoms:
        return Unreadable("divides by zero")
    return tuple(top / bottom for top, bottom in zip(tops, bottoms, strict=True))


def numbers(directory: Directory, tag: int) -> tuple[float, ...] | None:
    """The tag's numbers, or None where it is absent, unreadable or not numeric."""
    value = directory.get(tag)
    return value if isinstance(value, tuple) else None


def required(
    directory: Directory, tag: int, name: str, counts: Collection[int] = ()
) -> tuple[float, ...] | None:
    """The numbers of a tag on which a picture depends: absent or sound, nothing between.

    Args:
        directory: the tags of one directory.
        tag: its number.
        name: its name, for the message.
        counts: how many values it may have; empty for any number.

    Returns:
        Finite numbers, or None where the tag is absent.

    Raises:
        TagError: the tag is there but cannot be read, is not numeric or has another count.
    """
    value = directory.get(tag)
    if value is None:
        return None
    if isinstance(value, Unreadable):
        raise TagError(f"its {name} tag {value.reason}")
    if isinstance(value, bytes):
        raise TagError(f"its {name} tag holds text or bytes, not numbers")
    if not all(math.isfinite(v) for v in value):
        raise TagError(f"its {name} tag has values that are not finite")
    if counts and len(value) not in counts:
        wanted = " or ".join(str(c) for c in counts)
        raise TagError(f"its {name} tag has {len(value)} values, not {wanted}")
    return value


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


def raw_directory(directories: list[Directory], shape: tuple[int, int] | None = None) -> Directory:
    """The directory of the sensor data, among those with a CFA, else a LinearRaw, photometric.

    A file may hold several: a reduced CFA image beside the main one, or several frames. The one of
    the size that was decoded is taken; among several of that size (or where the size is not known
    yet) a main image comes before a reduced one (NewSubFileType), then the larger, then the first.

    Args:
        directories: from :func:`read_directories`.
        shape: height and width of what LibRaw decoded, margins included; None before it did.

    Returns:
        Its tags; empty where no directory has sensor data.
    """
    for wanted in (PHOTOMETRIC_CFA, PHOTOMETRIC_LINEAR_RAW):
        found = [d for d in directories if integers(d, PHOTOMETRIC) == (wanted,)]
        if found:
            return min(found, key=lambda d: _unlikeness(d, shape))
    return {}


def _unlikeness(directory: Directory, shape: tuple[int, int] | None) -> tuple[bool, bool, int]:
    """Sorts directories: of another size, reduced, small."""
    height, width = ((*integers(directory, tag), 0)[0] for tag in (IMAGE_LENGTH, IMAGE_WIDTH))
    (kind, *_) = integers(directory, NEW_SUBFILE_TYPE) or (0,)
    return shape not in (None, (height, width)), bool(kind & 1), -height * width


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
