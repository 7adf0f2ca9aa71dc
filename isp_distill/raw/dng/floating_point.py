"""The pixels of a floating-point DNG, which LibRaw gives on a scale that it does not tell.

LibRaw divides by the larger of the white level and the brightest pixel, multiplies by 16383 and
truncates, but leaves values between 4096 and 32767 as they are, and takes a missing white level of
16- and 24-bit samples for 2^n - 1 where the specification says 1.0. So the samples are read here,
and put on one fixed scale: white is 16383, and four times white still fits into 16 bits.

tifffile needs the compiled package imagecodecs for the predictors and for 24 bits, refuses the two
together, and allocates what the header claims. Here the stream of a strip or tile is inflated to
the bytes that it must have and no further.

Sources: the DNG specification 1.7 (SampleFormat, WhiteLevel, Predictor, the 24-bit format), Adobe
Photoshop TIFF Technical Note 3 (the floating-point predictor).
"""

from __future__ import annotations

import zlib
from typing import Any, BinaryIO

import numpy as np

from isp_distill.errors import CorruptRawError, UnsupportedRawError
from isp_distill.raw import tiff
from isp_distill.raw.tiff import TagError

#: Where white lies in the mosaic of a floating-point DNG.
WHITE = 16383.0

_FLOATING_POINT = 3
_DEFLATE = (8, 32946)
# Predictor: columns to the left that a byte is the difference from, in samples.
_PREDICTORS = {1: 0, 3: 1, 34894: 2, 34895: 4}


class UnknownEncodingError(ValueError):
    """The samples are coded in a way that is not known here; the message says which."""


def is_float(directory: tiff.Directory) -> bool:
    """Whether the samples are floating-point numbers."""
    return tiff.integers(directory, tiff.SAMPLE_FORMAT)[:1] == (_FLOATING_POINT,)


def scale_of(directory: tiff.Directory) -> float:
    """What takes a sample, or a black level, to the scale of the mosaic.

    Raises:
        TagError: WhiteLevel cannot be read or is not positive.
    """
    (white, *_) = tiff.required(directory, tiff.WHITE_LEVEL, "WhiteLevel") or (1.0,)
    if not white > 0:
        raise TagError(f"its WhiteLevel tag is {white:g}")
    return WHITE / white


def visible_mosaic(
    name: str, path: str, sizes: Any, head: bytes, sensor: tiff.Directory
) -> tuple[np.ndarray, str | None]:
    """The visible area of a floating-point DNG, uint16 [H, W], and a warning where it was cut.

    Args:
        name: of the file, for errors.
        path: of the file.
        sizes: rawpy's ``sizes``: what LibRaw takes for the sensor and its visible area.
        head: the file's first bytes.
        sensor: the tags of the sensor data.

    Raises:
        UnsupportedRawError: the samples are coded in a way that is not known here.
        CorruptRawError: they are not of LibRaw's size.
        TagError: their tags are damaged.
        OSError: the file cannot be read.
    """
    order = "<" if head[:2] == b"II" else ">"
    scale = scale_of(sensor)
    try:
        with open(path, "rb") as file:
            samples = read_samples(file, sensor, order)
    except UnknownEncodingError as error:
        raise UnsupportedRawError(
            name, f"{error} are not read here; convert it to a 16-bit integer or uncompressed DNG"
        ) from error
    if samples.shape != (sizes.raw_height, sizes.raw_width):
        raise CorruptRawError(
            name,
            f"its floating-point samples are {list(samples.shape)} where LibRaw finds "
            f"[{sizes.raw_height}, {sizes.raw_width}]; convert the file again",
        )
    top, left = sizes.top_margin, sizes.left_margin
    bottom, right = top + sizes.height // 2 * 2, left + sizes.width // 2 * 2
    return mosaic_of(samples[top:bottom, left:right], scale)


def read_samples(file: BinaryIO, directory: tiff.Directory, order: str) -> np.ndarray:
    """The whole sensor, margins included, float32 [height, width], in the file's own units.

    Args:
        file: the DNG; its position is moved.
        directory: the tags of the sensor data.
        order: the file's byte order, "<" or ">".

    Raises:
        TagError: the layout's tags are missing, damaged, or promise more than the file has.
        UnknownEncodingError: a compression, predictor or depth that is not known here.
        OSError: the file cannot be read.
    """
    height = _one(directory, tiff.IMAGE_LENGTH, "ImageLength")
    width = _one(directory, tiff.IMAGE_WIDTH, "ImageWidth")
    bits = _one(directory, tiff.BITS_PER_SAMPLE, "BitsPerSample")
    method = _one(directory, tiff.COMPRESSION, "Compression", 1)
    predictor = _one(directory, tiff.PREDICTOR, "Predictor", 1)
    if (
        bits not in (16, 24, 32)
        or _one(directory, tiff.SAMPLES_PER_PIXEL, "SamplesPerPixel", 1) > 1
    ):
        raise UnknownEncodingError(f"{bits}-bit floating-point samples")
    if method != 1 and method not in _DEFLATE:
        raise UnknownEncodingError(f"floating-point samples in compression {method}")
    if predictor not in _PREDICTORS:
        raise UnknownEncodingError(f"floating-point samples with predictor {predictor}")
    tiled = tiff.TILE_OFFSETS in directory
    if tiled:
        rows = _one(directory, tiff.TILE_LENGTH, "TileLength")
        columns = _one(directory, tiff.TILE_WIDTH, "TileWidth")
        offset_tag, count_tag = tiff.TILE_OFFSETS, tiff.TILE_BYTE_COUNTS
    else:
        rows = min(_one(directory, tiff.ROWS_PER_STRIP, "RowsPerStrip", height), height)
        columns = width
        offset_tag, count_tag = tiff.STRIP_OFFSETS, tiff.STRIP_BYTE_COUNTS
    offsets = tiff.integers(directory, offset_tag)
    counts = tiff.integers(directory, count_tag)
    across, down = -(-width // columns), -(-height // rows)
    if len(offsets) != across * down or len(counts) != len(offsets):
        raise TagError(
            f"it has {len(offsets)} strips or tiles where {across * down} make a picture"
        )
    if rows * columns > 4 * height * width + (1 << 20):
        raise TagError(f"its tiles of {rows} x {columns} are larger than the picture")
    samples = np.empty((height, width), np.float32)
    for index, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        top, left = index // across * rows, index % across * columns
        # The last strip is as short as the picture; tiles are padded.
        part = rows if tiled else min(rows, height - top)
        nbytes = part * columns * bits // 8
        file.seek(offset)
        data = file.read(nbytes if method == 1 else count)
        if method != 1:
            try:
                # No more than is needed, whatever the stream would grow to.
                data = zlib.decompressobj().decompress(data, nbytes)
            except zlib.error as error:
                raise TagError(f"its pixel data cannot be decompressed ({error})") from error
        if len(data) < nbytes:
            raise TagError(f"{nbytes - len(data)} bytes of pixel data are missing")
        block = np.frombuffer(data, np.uint8, nbytes).reshape(part, columns * bits // 8)
        if _PREDICTORS[predictor]:
            block, block_order = _undo(block, _PREDICTORS[predictor], bits // 8), ">"
        else:
            block_order = order
        values = _floats(block, bits, block_order)
        samples[top : top + rows, left : left + columns] = values[: height - top, : width - left]
    return samples


def mosaic_of(samples: np.ndarray, scale: float) -> tuple[np.ndarray, str | None]:
    """The samples as uint16 on the scale of the mosaic, and a warning where some do not fit.

    Args:
        samples: float32 [H, W].
        scale: from :func:`scale_of`.

    Raises:
        TagError: a sample is not a number.
    """
    if np.isnan(samples).any():
        raise TagError("it has pixels that are not a number")
    with np.errstate(over="ignore"):
        scaled = np.rint(samples * np.float32(scale))
    cut = float((scaled > 65535).mean())
    note = None
    if cut:
        note = f"{cut:.2%} of the pixels are brighter than 4 times the white level and were cut"
    return np.clip(scaled, 0, 65535).astype(np.uint16), note


def _one(directory: tiff.Directory, tag: int, name: str, absent: int | None = None) -> int:
    """The positive integer of a tag."""
    values = tiff.required(directory, tag, name)
    if values is None and absent is not None:
        return absent
    if values is None or not isinstance(values[0], int) or values[0] < 1:
        raise TagError(f"its {name} tag is {'missing' if values is None else values[0]}")
    return values[0]


def _undo(block: np.ndarray, step: int, width: int) -> np.ndarray:
    """Undo the floating-point predictor: uint8 [rows, bytes] to big-endian samples of the same.

    Each row holds the first bytes of all samples, then the second, ..., each byte the difference
    from the one ``step`` before.
    """
    rows, nbytes = block.shape
    if nbytes % step:
        raise UnknownEncodingError(f"a predictor of {step} samples over {nbytes} bytes")
    sums = np.cumsum(block.reshape(rows, -1, step), axis=1, dtype=np.uint8)
    planes = sums.reshape(rows, width, -1)
    return np.ascontiguousarray(planes.transpose(0, 2, 1)).reshape(rows, nbytes)


def _floats(block: np.ndarray, bits: int, order: str) -> np.ndarray:
    """float32 [rows, columns] from the bytes of the samples."""
    if bits != 24:
        return block.view(f"{order}f{bits // 8}").astype(np.float32)
    bytes_ = block.reshape(len(block), -1, 3).astype(np.uint32)
    high, middle, low = (bytes_[..., i] for i in ((0, 1, 2) if order == ">" else (2, 1, 0)))
    sign, exponent = high >> 7, high & 127
    mantissa = ((middle << 8) | low) / 65536.0
    # One sign bit, 7 of exponent (bias 63), 16 of mantissa; 0 is zero or subnormal, 127 not finite.
    size = np.where(
        exponent == 0,
        mantissa * 2.0**-62,
        (1 + mantissa) * np.exp2(exponent.astype(np.float64) - 63),
    )
    size = np.where(exponent == 127, np.where(mantissa == 0, np.inf, np.nan), size)
    return np.where(sign == 1, -size, size).astype(np.float32)
