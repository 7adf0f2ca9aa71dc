"""One camera's picture, upright, of which no more is decoded than a view needs."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isp_distill.data.pictures import read_picture
from isp_distill.errors import RawError
from isp_distill.files.pillow import pillow

Array = np.ndarray[Any, Any]

# EXIF 2.32: tag 274 Orientation, 34665 the Exif directory, in it 42036 LensModel.
_ORIENTATION, _EXIF, _LENS = 274, 34665, 42036
_JPEG = (".jpg", ".jpeg")
_ALREADY_UPRIGHT = 1


class CameraPicture:
    """A picture in a file, in memory as a JPEG's bytes, or as pixels.

    Of a JPEG an eighth, a quarter or half of the pixels is decoded where that is enough: a view at
    448 pixels of one of 24 MP needs a sixteenth of them.

    Args:
        content: a path, a JPEG's bytes, or uint8 ``[H, W, 3]``.
        name: of its file, for messages; the path's own if None.
        orientation: EXIF orientation where a JPEG says none itself.

    Attributes:
        shape: height and width, upright.
        orientation: what was applied to turn it upright.
        lens: as its EXIF names it; "" where it does not.

    Raises:
        RawError: it cannot be read as a picture.
        ValueError: pixels of another form.
        ImportError: Pillow is missing.
    """

    def __init__(
        self,
        content: str | os.PathLike[str] | bytes | Array,
        name: str | None = None,
        orientation: int = _ALREADY_UPRIGHT,
    ) -> None:
        self._content = content
        self.name = name or (os.fspath(content) if isinstance(content, (str, Path)) else "picture")
        self.orientation, self.lens = orientation, ""
        self._pixels: Array | None = None
        if isinstance(content, np.ndarray):
            self._pixels = _checked(content, self.name)
        elif not isinstance(content, bytes) and not self.name.lower().endswith(_JPEG):
            self._pixels = read_picture(content)
        if self._pixels is not None:
            self.orientation = _ALREADY_UPRIGHT
            self._stored = self._pixels.shape[0], self._pixels.shape[1]
        else:
            with self._opened() as image:
                exif = image.getexif()
                said = exif.get(_ORIENTATION)
                self.orientation = said if said in range(1, 9) else orientation
                self.lens = str(exif.get_ifd(_EXIF).get(_LENS, ""))
                self._stored = image.height, image.width
        height, width = self._stored
        self.shape = (width, height) if self.orientation >= 5 else (height, width)

    def cut(self, window: Sequence[float], size: tuple[int, int]) -> Array:
        """A part of the picture at a size: uint8 ``[h, w, 3]``, antialiased.

        Args:
            window: top, left, bottom, right, in pixels of the whole picture, fractions too; what
                is outside of it is cut off.
            size: height and width of the result.

        Raises:
            RawError: it cannot be decoded.
        """
        from PIL import Image

        top, left, bottom, right = _laid(window, self.orientation, self._stored)
        height, width = size[::-1] if self.orientation >= 5 else size
        share = max(height / max(bottom - top, 1e-6), width / max(right - left, 1e-6))
        if self._pixels is not None:
            image, shrunk = Image.fromarray(self._pixels), 1
        else:
            image, shrunk = self._decoded(share)
        rows, columns = (
            [min(max(edge / shrunk, 0.0), float(limit)) for edge in edges]
            for edges, limit in (((top, bottom), image.height), ((left, right), image.width))
        )
        box = columns[0], rows[0], columns[1], rows[1]
        resized = image.resize((width, height), Image.Resampling.LANCZOS, box)
        return _turned(np.array(resized), self.orientation)

    def whole(self, longer: int) -> Array:
        """All of it, uint8 ``[h, w, 3]``, the longer side at most so long."""
        height, width = self.shape
        factor = min(1.0, longer / max(height, width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        return self.cut((0, 0, height, width), size)

    def pixels(self) -> Array:
        """All of it at its own size: uint8 ``[H, W, 3]``."""
        return self.whole(max(self.shape))

    def jpeg(self) -> bytes | None:
        """The JPEG's bytes; None where it is no JPEG."""
        if self._pixels is not None or isinstance(self._content, np.ndarray):
            return None
        return self._content if isinstance(self._content, bytes) else _bytes_of(self._content)

    def _decoded(self, share: float) -> tuple[Any, int]:
        """The stored picture with so large a share of its sides at least, and the whole factor."""
        with self._opened() as image:
            before = image.width
            if share < 1:
                least = tuple(max(1, int(side * share)) for side in image.size)
                image.draft(image.mode, least)
            try:
                decoded = image.convert("RGB")
            except (OSError, ValueError, SyntaxError) as error:
                raise RawError(self.name, f"its picture cannot be decoded: {error}") from error
            return decoded, round(before / image.width)

    def _opened(self) -> Any:
        reader = pillow("reading pictures needs")
        content = self._content
        assert not isinstance(content, np.ndarray)
        try:
            file = io.BytesIO(content) if isinstance(content, bytes) else content
            return reader.open(file, formats=("JPEG", "MPO"))
        except (OSError, ValueError, SyntaxError, reader.DecompressionBombError) as error:
            raise RawError(self.name, f"its picture cannot be read: {error}") from error


def _bytes_of(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RawError(path, f"its picture cannot be read: {error.strerror}") from error


def is_picture(item: object) -> bool:
    """Whether something is uint8 ``[H, W, 3]``."""
    return isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.shape[2:] == (3,)


def _checked(pixels: Array, name: str) -> Array:
    if not is_picture(pixels) or 0 in pixels.shape:
        raise ValueError(
            f"{name}: must be uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}"
        )
    return np.ascontiguousarray(pixels)


def _laid(
    window: Sequence[float], orientation: int, stored: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A window of the upright picture within the stored one; the turn of ``_turned``, undone."""
    top, left, bottom, right = window
    if orientation >= 5:
        top, left, bottom, right = left, top, right, bottom
    if orientation in (3, 4, 6, 7):
        top, bottom = stored[0] - bottom, stored[0] - top
    if orientation in (2, 3, 7, 8):
        left, right = stored[1] - right, stored[1] - left
    return top, left, bottom, right


def _turned(pixels: Array, orientation: int) -> Array:
    """Rows and columns mirrored, then exchanged, as EXIF says (see ``raw.image.upright``)."""
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels)
