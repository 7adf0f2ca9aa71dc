"""The pixels of a lossless-JPEG DNG by libjpeg-turbo, twice as fast as LibRaw; an optional extra.

LibRaw still reads everything but the pixels, and the pixels of every file that is not of the plain
kind below. It is also asked wherever there is a doubt, so a damaged file meets the same words as
without the extra: here, nothing is refused.

libjpeg-turbo comes with imagecodecs (``pip install "isp-distill[fast]"``). It fills up a stream
that ends early, and imagecodecs does not pass on the warning. So each stream is asked for one row
more than it has. What comes after a sound stream is noise; what comes after one that ended early
is exactly the middle of the range, in every sample (jdlhuff.c, decode_mcus). ``missing`` tries that
out on a small stream before the first file.

The plain kind: a Bayer mosaic in tiles or one strip, lossless Huffman JPEG of one or
two components, no restarts, no linearisation, no masked areas. Of JPEG: ITU-T T.81, annexes B, H.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import rawpy

from isp_distill.raw import tiff

#: The environment variable that chooses; "auto" is the default.
ENVIRONMENT = "ISP_DISTILL_DECODER"
CHOICES = ("auto", "libraw")

_LOSSLESS_JPEG = 7
# The tags that change what the samples mean or where they go, and the one value that does not. Of
# other colours LibRaw reads beyond its table, and does not always say the same.
_PLAIN = {
    266: (1,),  # FillOrder
    tiff.SAMPLES_PER_PIXEL: (1,),
    284: (1,),  # PlanarConfiguration
    tiff.PREDICTOR: (1,),
    tiff.SAMPLE_FORMAT: (1,),
    tiff.CFA_REPEAT_PATTERN_DIM: (2, 2),
    tiff.CFA_PLANE_COLOR: (0, 1, 2),
    tiff.CFA_LAYOUT: (1,),
    50975: (1,),  # RowInterleaveFactor
    52547: (1,),  # ColumnInterleaveFactor
}
# LibRaw takes these from any directory: JPEGTables, LinearizationTable, MaskedAreas,
# SubTileBlockSize.
_FOREIGN = (347, tiff.LINEARIZATION_TABLE, 50830, 50974)
# libjpeg's limit of a side, less the row that is added.
_MAX_SIDE = 65499
# What a file may have beside the pixels: previews, profiles.
_MAX_OTHER_BYTES = 256 << 20

# A stream of 4 x 2 samples in two components of 14 bits, for a try; and where it says the 14.
_SAMPLE = bytes.fromhex(
    "ffd8ffc3000e0e0004000202001100011100ffc40024000000000011000000000000000000000000010203040506"
    "0708090a0b0c0d0e0f10ffda000a02000001000100006abbdae0f3d03af41b9a84d10ab32e9b42a246047bb48049"
    "bdc0c59d9fffd9"
)
_SAMPLE_VALUES = [
    [2800, 3600, 2880, 3520],
    [2600, 3640, 2924, 3620],
    [2560, 4000, 3108, 48],
    [16000, 3600, 12, 3524],
]
_SAMPLE_BITS_AT = 6

_Decode = Callable[..., np.ndarray]


def requested() -> str:
    """What ``ISP_DISTILL_DECODER`` asks for: "auto", or "libraw" for LibRaw alone.

    Raises:
        ValueError: it is something else.
    """
    name = os.environ.get(ENVIRONMENT) or "auto"
    if name not in CHOICES:
        raise ValueError(f'{ENVIRONMENT} must be "auto" or "libraw", not {name!r}')
    return name


def missing() -> str | None:
    """Why LibRaw decodes lossless JPEG here, in one sentence; None where libjpeg-turbo does.

    Raises:
        ValueError: ``ISP_DISTILL_DECODER`` has no such value.
    """
    return f"{ENVIRONMENT} is libraw" if requested() == "libraw" else _decoder()[1]


def version() -> str:
    """The library that decodes, where :func:`missing` is None."""
    import imagecodecs

    return f"imagecodecs {imagecodecs.__version__}, {imagecodecs.jpeg8_version().split('/')[0]}"


@functools.cache
def _decoder() -> tuple[_Decode | None, str | None]:
    """imagecodecs' decoder, and why there is none."""
    try:
        from imagecodecs import jpeg8_decode as decode

        sound, short = _decoded(decode, bytearray(_SAMPLE)), bytearray(_SAMPLE)
        # Of 16 bits no value is too large, so that nothing else gives the missing end away.
        short[_SAMPLE_BITS_AT] = 16
        del short[-4:]
        known = sound is not None and sound.tolist() == _SAMPLE_VALUES
        trusted = known and _decoded(decode, short) is None
    except ModuleNotFoundError:
        return None, 'imagecodecs is not installed (pip install "isp-distill[fast]")'
    # Made for another numpy, without libjpeg-turbo, or with one before 3.1, which knows 8, 12 and
    # 16 bits alone.
    except Exception:
        trusted = False
    if not trusted:
        return None, "this imagecodecs does not decode lossless JPEG as libjpeg-turbo 3.1 does"
    return decode, None


@dataclass(frozen=True)
class Layout:
    """Where the streams of a plain lossless-JPEG DNG lie, and the part that each is.

    Attributes:
        height: rows of the sensor, margins included.
        width: its columns.
        rows: of a tile; of one strip, ``height``.
        columns: of a tile; of one strip, ``width``.
        streams: offset in the file and bytes, tile by tile.
    """

    height: int
    width: int
    rows: int
    columns: int
    streams: tuple[tuple[int, int], ...]


def layout_of(directories: list[tiff.Directory]) -> Layout | None:
    """The layout of a plain file; None for every other one, damaged tags among them."""
    if not tiff.is_dng(directories) or any(t in d for t in _FOREIGN for d in directories):
        return None
    # DNG 1.0 codes a difference of 32768 otherwise.
    if tiff.integers(directories[0], tiff.DNG_VERSION)[:2] < (1, 1):
        return None
    frames = [
        d for d in directories if tiff.integers(d, tiff.PHOTOMETRIC) == (tiff.PHOTOMETRIC_CFA,)
    ]
    if len(frames) != 1 or tiff.integers(frames[0], tiff.COMPRESSION) != (_LOSSLESS_JPEG,):
        return None
    (sensor,) = frames
    colors = _tuple(sensor.get(tiff.CFA_PATTERN))
    if colors is None or len(colors) != 4 or not set(colors) <= {0, 1, 2}:
        return None
    if any(tag in sensor and _tuple(sensor[tag]) != plain for tag, plain in _PLAIN.items()):
        return None
    tiled = tiff.TILE_OFFSETS in sensor
    if tiled == (tiff.STRIP_OFFSETS in sensor):
        return None
    kinds = (
        (tiff.TILE_LENGTH, tiff.TILE_WIDTH, tiff.TILE_OFFSETS, tiff.TILE_BYTE_COUNTS)
        if tiled
        else (tiff.IMAGE_LENGTH, tiff.IMAGE_WIDTH, tiff.STRIP_OFFSETS, tiff.STRIP_BYTE_COUNTS)
    )
    sides = [tiff.integers(sensor, t) for t in (tiff.IMAGE_LENGTH, tiff.IMAGE_WIDTH, *kinds[:2])]
    if any(len(side) != 1 or side[0] < 1 for side in sides):
        return None
    height, width, rows, columns = (side[0] for side in sides)
    offsets, counts = (tiff.integers(sensor, t) for t in kinds[2:])
    number = -(-height // rows) * -(-width // columns)
    # LibRaw begins a row anew at the sensor's last column, so a wider tile means another picture.
    if height * width > tiff.MAX_PIXELS or columns > width or rows > height + 4096:
        return None
    if not len(offsets) == len(counts) == number:
        return None
    return Layout(height, width, rows, columns, tuple(zip(offsets, counts, strict=True)))


def _tuple(value: tiff.Value | None) -> tuple[float, ...] | None:
    """A tag's numbers, which some writers give as undefined bytes; None where there are none."""
    return tuple(value) if isinstance(value, (tuple, bytes)) else None


def unpacked(decoder: Any, path: str, directories: list[tiff.Directory]) -> np.ndarray | None:
    """The whole sensor, uint16 [height, width]; ``decoder`` has then unpacked all but the pixels.

    Args:
        decoder: a rawpy that nothing was opened in. After None it is as good as new.
        path: the file.
        directories: every directory of the file.

    Returns:
        None where LibRaw has to read the file: it is of another kind, or may be damaged.

    Raises:
        OSError: the file cannot be read.
        ValueError: ``ISP_DISTILL_DECODER`` has no such value.
    """
    layout = layout_of(directories)
    if layout is None or missing() is not None:
        return None
    decode = _decoder()[0]
    assert decode is not None
    pixels = layout.height * layout.width
    size = os.path.getsize(path)
    if size > 4 * pixels + _MAX_OTHER_BYTES:
        return None
    try:
        data = bytearray(size)
        with open(path, "rb") as file:
            if file.readinto(data) != size:
                return None
        # LibRaw looks at the sound file, and keeps reading from this memory.
        decoder.open_buffer(_Memory(data))
        sizes = decoder.sizes
        if (sizes.raw_height, sizes.raw_width) != (layout.height, layout.width) or (
            sizes.top_margin + sizes.height > sizes.raw_height
            or sizes.left_margin + sizes.width > sizes.raw_width
        ):
            return None
        frame = _frame(decode, data, layout)
        if frame is None:
            return None
        # Where there is no JPEG any more LibRaw ends its decoding at once, without an error.
        data[layout.streams[0][0] + 1] = 0
        decoder.unpack()
        curve = decoder.tone_curve
    except (rawpy.LibRawError, rawpy.NotSupportedError, MemoryError):
        return None
    return frame if np.array_equal(curve, np.arange(len(curve))) else None


class _Memory:
    """What rawpy takes for an open file: it reads all of it, and here gets no copy."""

    def __init__(self, data: bytearray) -> None:
        self._data = data

    def read(self, size: int = -1) -> bytearray:
        return self._data


def _frame(decode: _Decode, data: bytearray, layout: Layout) -> np.ndarray | None:
    """All tiles of a file, uint16 [height, width], or None. Streams are changed in ``data``."""
    height, width, rows, columns = layout.height, layout.width, layout.rows, layout.columns
    memory = memoryview(data)
    if len(layout.streams) == 1:
        offset, count = layout.streams[0]
        whole = _decoded(decode, memory[offset : offset + count], layout)
        return None if whole is None else whole.reshape(rows, columns)[:height]
    frame = np.empty((height, width), np.uint16)
    across = -(-width // columns)
    scratch: dict[tuple[int, ...], np.ndarray] = {}
    for index, (offset, count) in enumerate(layout.streams):
        tile = _decoded(decode, memory[offset : offset + count], layout, scratch)
        if tile is None:
            return None
        top, left = index // across * rows, index % across * columns
        part = tile.reshape(rows, columns)[: height - top, : width - left]
        frame[top : top + rows, left : left + columns] = part
    return frame


class _Header(NamedTuple):
    """What a stream says of itself; ``height_at`` is where its height stands."""

    height_at: int
    height: int
    width: int
    components: int
    bits: int


def _decoded(
    decode: _Decode,
    stream: bytearray | memoryview,
    layout: Layout | None = None,
    scratch: dict[tuple[int, ...], np.ndarray] | None = None,
) -> np.ndarray | None:
    """The samples of one stream, uint16 [height, width times components]; None where in doubt.

    Args:
        decode: imagecodecs' decoder.
        stream: the stream; one row is added to what it says.
        layout: of the file, whose tile it has to fill; None for any size.
        scratch: memory of former calls, by shape, to decode into again; None for new memory.
    """
    header = _header(stream)
    if header is None:
        return None
    samples = header.height * header.width * header.components
    # A sample has at least one bit, so that a short stream cannot ask for much memory.
    if header.height > _MAX_SIDE or samples > 8 * len(stream):
        return None
    if layout is not None and (
        samples != layout.rows * layout.columns
        # LibRaw takes such a row for another one (lossless_dng_load_raw).
        or (header.components == 2 and 4 * header.width == layout.width)
    ):
        return None
    struct.pack_into(">H", stream, header.height_at, header.height + 1)
    # Fresh memory for each tile costs more than its pages are worth.
    shape = (header.height + 1, header.width, header.components, header.bits)
    try:
        more = decode(stream, out=None if scratch is None else scratch.get(shape))
    except (RuntimeError, ValueError, MemoryError):
        return None
    if scratch is not None:
        scratch[shape] = more
    flat = more.reshape(header.height + 1, -1)
    decoded, beyond = flat[:-1], flat[-1]
    middle = 1 << (header.bits - 1)
    if beyond[0] == middle and (beyond == middle).all():
        return None
    # LibRaw calls such data corrupted.
    if header.bits < 16 and int(decoded.max()) >> header.bits:
        return None
    return np.asarray(decoded, np.uint16)


def _header(stream: bytearray | memoryview) -> _Header | None:
    """The header of a plain stream: SOF3, up to two components of one table each, or None."""
    if len(stream) < 4 or stream[0] != 0xFF or stream[1] != 0xD8:
        return None
    frame, names, tables = None, b"", set()
    start = 2
    while start + 4 <= len(stream) and stream[start] == 0xFF:
        marker = stream[start + 1]
        end = start + 2 + (stream[start + 2] << 8 | stream[start + 3])
        body = bytes(stream[start + 4 : end])
        if end < start + 4 or end > len(stream):
            return None
        if marker == 0xC4:
            while len(body) > 17 and body[0] < 4:
                tables.add(body[0])
                body = body[17 + sum(body[1:17]) :]
            if body:
                return None
        elif marker == 0xC3 and frame is None and len(body) in (9, 12):
            bits, height, width, components = struct.unpack_from(">BHHB", body)
            plain = len(body) == 6 + 3 * components and set(body[7::3]) == {0x11}
            if not (plain and 2 <= bits <= 16 and height and width):
                return None
            frame, names = _Header(start + 5, height, width, components, bits), body[6::3]
        elif marker == 0xDA and frame is not None:
            # LibRaw gives each component the table of its own number, or else the first.
            scan = bytes([len(names)])
            for number, name in enumerate(names):
                scan += bytes([name, number << 4 if number in tables else 0])
            # A predictor, and no point transform.
            plain = 0 in tables and body[:-3] == scan and body[-2:] == b"\0\0"
            return frame if plain and body[-3] in range(1, 8) else None
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            return None
        start = end
    return None
