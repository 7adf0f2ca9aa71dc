"""The picture that a camera puts into its RAW file.

This module does not import torch: decode workers load it on its own.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import rawpy

from isp_distill.errors import CorruptRawError, UnsupportedRawError
from isp_distill.raw import metadata
from isp_distill.raw.image import _open


class EmbeddedPicture(NamedTuple):
    """A JPEG as it lies in a RAW file.

    Attributes:
        jpeg: its bytes.
        orientation: EXIF orientation of the RAW file, which holds for the JPEG where that says
            none.
    """

    jpeg: bytes
    orientation: int


def embedded_picture(path: str | os.PathLike[str]) -> EmbeddedPicture:
    """The largest JPEG in a RAW file, not decoded.

    Raises:
        UnsupportedRawError: there is no JPEG in it, or LibRaw does not read the file.
        CorruptRawError: the file is damaged.
        OSError: it cannot be opened.
    """
    name = os.fsdecode(path)
    with open(name, "rb"):
        pass  # LibRaw does not say why it cannot open a file
    with rawpy.RawPy() as decoder:
        try:
            _open(decoder, name)
            found = decoder.extract_thumb()
            orientation = metadata.orientation_of(decoder.sizes.flip)
        except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError) as error:
            raise UnsupportedRawError(
                name, 'no picture of the camera is in it: use picture="beside" or a folder of them'
            ) from error
        except (rawpy.LibRawFileUnsupportedError, rawpy.NotSupportedError) as error:
            raise UnsupportedRawError(name, f"LibRaw does not read it: {error}") from error
        except (rawpy.LibRawError, MemoryError) as error:
            raise CorruptRawError(name, f"its picture cannot be read: {error}") from error
    if found.format != rawpy.ThumbFormat.JPEG:
        raise UnsupportedRawError(
            name,
            f"the picture in it is no JPEG ({found.format.name}), which is a thumbnail: use "
            'picture="beside" or a folder of pictures',
        )
    return EmbeddedPicture(bytes(found.data), orientation)
