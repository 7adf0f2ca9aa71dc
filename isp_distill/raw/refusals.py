"""Which RAW files cannot be used, and the sentence that says why.

LibRaw reads more than Bayer mosaics, and its own errors name neither the file nor what to do.
``image.py`` asks here before it decodes, after it did, and when LibRaw gave up. This module does
not import torch: decode workers load it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import rawpy

from isp_distill.errors import CorruptRawError, UnsupportedRawError
from isp_distill.raw import metadata, tiff
from isp_distill.raw.dng import floating_point as dng_float
from isp_distill.raw.tiff import MAX_PIXELS


def check_size(name: str, decoder: Any) -> None:
    """Refuse absurd sizes before LibRaw allocates them."""
    sizes = decoder.sizes
    pixels = sizes.raw_height * sizes.raw_width
    if pixels > MAX_PIXELS:
        raise CorruptRawError(
            name,
            f"the header claims {sizes.raw_width} x {sizes.raw_height} pixels, more than the "
            f"{MAX_PIXELS} any sensor has; copy the file again",
        )
    if (
        sizes.height < 2
        or sizes.width < 2
        or sizes.top_margin + sizes.height > sizes.raw_height
        or sizes.left_margin + sizes.width > sizes.raw_width
    ):
        raise CorruptRawError(
            name,
            f"the visible area, {sizes.width} x {sizes.height} at ({sizes.left_margin}, "
            f"{sizes.top_margin}), is not inside the sensor's {sizes.raw_width} x "
            f"{sizes.raw_height} pixels; copy the file again",
        )


def bayer_of(
    name: str, decoder: Any, head: bytes, directories: list[tiff.Directory]
) -> tuple[list[int], str]:
    """LibRaw's colour indices of the visible area's first 2x2, and their pattern.

    Raises:
        UnsupportedRawError: the sensor data is not a Bayer mosaic; the message says what it is.
    """
    advice = "isp-distill reads Bayer mosaics only"
    if decoder.raw_type != rawpy.RawType.Flat or decoder.raw_image_visible is None:
        if head.startswith(b"FOVb"):
            raise UnsupportedRawError(name, f"a Foveon sensor has no mosaic; {advice}")
        raise UnsupportedRawError(
            name,
            "the data is already demosaiced (linear DNG, sRAW or similar); "
            f"{advice}, convert from the original RAW",
        )
    monochrome = tiff.integers(tiff.raw_directory(directories), tiff.PHOTOMETRIC) == (
        tiff.PHOTOMETRIC_LINEAR_RAW,
    )
    if decoder.num_colors == 1 or monochrome:
        raise UnsupportedRawError(name, f"a monochrome sensor has no colour filter; {advice}")
    try:
        period = decoder.raw_pattern
    except NotImplementedError as error:  # a filter code that rawpy does not know
        raise UnsupportedRawError(name, f"unknown colour filter ({error}); {advice}") from error
    if period is not None and period.shape == (6, 6):
        raise UnsupportedRawError(name, f"the sensor is X-Trans (6x6 colour filter); {advice}")
    top, left = decoder.sizes.top_margin, decoder.sizes.left_margin
    # 8x8 tells a Bayer filter from the longer periods that begin like one.
    sites = [[decoder.raw_color(top + y, left + x) for x in range(8)] for y in range(8)]
    colors = [*sites[0][:2], *sites[1][:2]]
    description = decoder.color_desc.decode("ascii", "replace")
    pattern = metadata.pattern_of(colors, description)
    if (
        decoder.num_colors != 3
        or pattern is None
        or np.any(np.array(sites) != np.tile(np.array(colors).reshape(2, 2), (4, 4)))
    ):
        letters = [description[c] if 0 <= c < len(description) else "?" for c in colors]
        raise UnsupportedRawError(
            name,
            f"the colour filter begins {''.join(letters)} with {decoder.num_colors} colours "
            f"and is not Bayer; {advice}",
        )
    return colors, pattern


def explain(
    name: str, error: Exception, head: bytes, directories: list[tiff.Directory]
) -> CorruptRawError | UnsupportedRawError:
    """The error a user can act on, from LibRaw's."""
    said = error.args[0] if error.args else ""
    words = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    memory = (
        rawpy.LibRawUnsufficientMemoryError,
        rawpy.LibRawMemPoolOverflowError,
        rawpy.LibRawTooBigError,
        MemoryError,
    )
    if isinstance(error, memory):
        return CorruptRawError(
            name,
            "decoding it needs more memory than allowed: a damaged size, or raise the memory limit",
        )
    unsupported = isinstance(error, (rawpy.LibRawFileUnsupportedError, rawpy.NotSupportedError))
    if tiff.is_dng(directories):
        directory = tiff.raw_directory(directories)
        method = (*tiff.integers(directory, tiff.COMPRESSION), 1)[0]
        # Deflate with integer samples: LibRaw takes it up, then calls the data corrupted.
        deflated = method in (8, 32946) and tiff.integers(directory, tiff.SAMPLE_FORMAT) != (3,)
        if deflated or (unsupported and method not in (1, 7)):
            return UnsupportedRawError(
                name,
                f"LibRaw does not read DNG compression {method} here; "
                "convert the file to an uncompressed or lossless-JPEG DNG",
            )
        if unsupported and tiff.TILE_OFFSETS in directory and dng_float.is_float(directory):
            return UnsupportedRawError(
                name,
                "LibRaw does not read uncompressed floating-point tiles; "
                "convert the file to a DNG of 16-bit integers or of deflated floats",
            )
        if unsupported:
            return CorruptRawError(
                name, "its DNG header makes no sense to LibRaw; copy the file again"
            )
    if not unsupported:
        return CorruptRawError(name, f"LibRaw could not decode it ({words}); copy the file again")
    if not any(head):
        return CorruptRawError(name, "it begins with zeros: the data was lost; copy it again")
    for magic, kind in (
        (b"\xff\xd8\xff", "a JPEG"),
        (b"\x89PNG", "a PNG"),
        (b"II*\0", "a TIFF without sensor data"),
        (b"MM\0*", "a TIFF without sensor data"),
    ):
        if head.startswith(magic):
            return UnsupportedRawError(name, f"it is {kind}, not a RAW file, whatever its name")
    return UnsupportedRawError(name, f"LibRaw knows no such RAW format (it begins {head[:4]!r})")
