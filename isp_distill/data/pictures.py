"""One ordinary picture from a file: what Pillow reads, as 8-bit RGB, upright, or refused."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from isp_distill.errors import RawError
from isp_distill.files.ordinary import check_ordinary
from isp_distill.files.pillow import pillow

# TIFF 6.0: tag 258 BitsPerSample, tag 284 PlanarConfiguration (2: one plane after the other).
_BITS_PER_SAMPLE, _PLANAR_CONFIGURATION, _SEPARATE = 258, 284, 2

_LIKELY_MOSAIC = (
    "it has one channel of {bits}, which is how sensor mosaics are stored, not photographs; train "
    "on mosaics with a dataset of isp_distill.RawImage(mosaic, pattern=, black=, white=), or save "
    "the picture with 8 bits"
)


def read_picture(path: str | os.PathLike[str]) -> np.ndarray[Any, Any]:
    """A picture's pixels: uint8 RGB ``[H, W, 3]``, turned upright by its EXIF orientation.

    Three channels of 16 bits are scaled to 8. One channel of more than 8 bits is refused: it is
    a mosaic far more often than a photograph, and Pillow would make white of it.

    Args:
        path: a JPEG, PNG, WebP, BMP or TIFF file.

    Raises:
        RawError: it cannot be read, or is no ordinary picture; the message says what it is.
        ImportError: Pillow is missing.
    """
    reader = pillow("reading pictures needs")
    from PIL import ImageOps

    name = os.fspath(path)
    check_ordinary(name, RawError)
    try:
        with reader.open(name) as image:
            reason = _no_picture(image)
            if reason is None:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, reader.DecompressionBombError) as error:
        raise RawError(name, f"cannot be read as a picture: {error}") from error
    raise RawError(name, reason)


def _no_picture(image: Any) -> str | None:
    """Why an open image is not to be taken for a photograph, or None."""
    mode = str(image.mode)
    if mode.startswith("I;16"):
        return _LIKELY_MOSAIC.format(bits="16 bits")
    if mode == "I":
        return _LIKELY_MOSAIC.format(bits="32 bits")
    if mode == "F":
        return (
            "it holds floating-point numbers, whose black and white nobody knows; save the picture "
            "with 8 or 16 bits"
        )
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANAR_CONFIGURATION) == _SEPARATE and max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8:
        # Pillow takes such planes for 8-bit ones and gives noise (seen with 12.0).
        return "its 16-bit colours lie in separate planes, which Pillow misreads; save it anew"
    return None
