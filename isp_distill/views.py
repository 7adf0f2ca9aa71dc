"""Views: one sample's crop, in whole CFA periods, its pattern tracked through flips."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isp_distill.cfa import PATTERNS
from isp_distill.errors import RawError
from isp_distill.raw import RawImage

if TYPE_CHECKING:
    from isp_distill.packed import PackedRaw

_BAND_ROWS = 64


def bin_mosaic(mosaic: np.ndarray[Any, Any], factor: int) -> np.ndarray[Any, Any]:
    """Average ``factor`` x ``factor`` sites of one colour into one: ``[H, W]`` uint16 to smaller.

    What a sensor's binning mode does; the pattern stays. Periods that do not fill a block are cut.
    """
    if factor == 1:
        return mosaic
    rows, columns = mosaic.shape[0] // (2 * factor), mosaic.shape[1] // (2 * factor)
    binned: np.ndarray[Any, Any] = np.empty((2 * rows, 2 * columns), np.uint16)
    # Bands that fit the cache. Rows are added first, as whole vectors: ten times as fast as a mean
    # over both axes. Sums are exact, so the order makes no difference.
    step = max(1, _BAND_ROWS // (2 * factor))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        band = mosaic[2 * factor * first : 2 * factor * last, : 2 * factor * columns]
        band = band.reshape(last - first, factor, 2, 2 * factor * columns)
        tall = band.sum(axis=1, dtype=np.uint32).reshape(2 * (last - first), columns, factor, 2)
        total = tall[:, :, 0].copy()
        for number in range(1, factor):
            total += tall[:, :, number]
        mean = total.astype(np.float32) / np.float32(factor * factor)
        binned[2 * first : 2 * last] = np.rint(mean).reshape(-1, 2 * columns)
    return binned


@dataclass(frozen=True)
class View:
    """How a sample is cut: where, how large, and mirrored or not.

    Attributes:
        crop: sides of the mosaic that comes out, sensor pixels, even.
        binning: sites of one colour averaged per side; None takes the largest that still leaves
            the crop, so that a large sensor is seen whole rather than through a keyhole.
    """

    crop: int
    binning: int | None = None

    def __post_init__(self) -> None:
        if self.crop < 2 or self.crop % 2:
            raise ValueError(f"crop must be even and at least 2, got {self.crop}")
        if self.binning is not None and self.binning < 1:
            raise ValueError(f"binning must be at least 1, got {self.binning}")

    def factor(self, height: int, width: int, path: str) -> int:
        """The binning factor for a mosaic of this size.

        Raises:
            RawError: if the crop does not fit.
        """
        largest = min(height, width) // self.crop
        factor = largest if self.binning is None else self.binning
        if largest < max(factor, 1):
            raise RawError(
                path,
                f"its mosaic of {height} x {width} is too small for a crop of {self.crop} "
                f"with binning {max(factor, 1)}: choose a smaller crop",
            )
        return factor

    def cut_raw(
        self, raw: RawImage, place: tuple[float, float], mirror: bool
    ) -> tuple[np.ndarray[Any, Any], RawImage]:
        """The view's mosaic, and the camera it is seen with (its pattern follows the mirror)."""
        top, left, factor = self.window(raw.height, raw.width, place, raw.path)
        side = factor * self.crop
        return self._finished(raw, raw.mosaic[top : top + side, left : left + side], factor, mirror)

    def cut_packed(
        self, packed: PackedRaw, index: int, place: tuple[float, float], mirror: bool
    ) -> tuple[np.ndarray[Any, Any], RawImage]:
        """The same view of a packed file, of which only the view's rows are read."""
        top, left, factor = self.window(*packed.shape(index), place, str(packed.paths[index]))
        side = factor * self.crop
        raw = packed.rows(index, top, top + side)
        return self._finished(raw, raw.mosaic[:, left : left + side], factor, mirror)

    def window(
        self, height: int, width: int, place: tuple[float, float], path: str
    ) -> tuple[int, int, int]:
        """Top and left of the view in a mosaic of this size, and its binning factor.

        The view is ``factor * crop`` sensor pixels a side and begins with a whole block of that
        factor: binning the window gives what the window of the binned mosaic would.

        Raises:
            RawError: if the crop does not fit.
        """
        factor = self.factor(height, width, path)
        block = 2 * factor
        top, left = _corner((height // block * 2, width // block * 2), self.crop, place)
        return factor * top, factor * left, factor

    def _finished(
        self, raw: RawImage, window: np.ndarray[Any, Any], factor: int, mirror: bool
    ) -> tuple[np.ndarray[Any, Any], RawImage]:
        mosaic = bin_mosaic(window, factor)
        pattern = raw.pattern
        if mirror:
            # Columns of an even width change places: each row of the period is read backwards.
            mosaic = mosaic[:, ::-1]
            pattern = PATTERNS[PATTERNS.index(pattern) ^ 1]
        period = np.ascontiguousarray(mosaic[:2, :2])
        return mosaic, dataclasses.replace(raw, mosaic=period, pattern=pattern)

    def cut_picture(
        self, picture: np.ndarray[Any, Any], place: tuple[float, float], mirror: bool
    ) -> np.ndarray[Any, Any]:
        """The view of an RGB picture ``[H, W, 3]``, its shorter side scaled to the crop's."""
        from PIL import Image

        height, width = picture.shape[:2]
        scale = self.crop / min(height, width)
        size = (max(self.crop, round(width * scale)), max(self.crop, round(height * scale)))
        resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
        top, left = _corner(resized.shape, self.crop, place)
        cut = resized[top : top + self.crop, left : left + self.crop]
        return cut[:, ::-1] if mirror else cut


def _corner(shape: tuple[int, ...], crop: int, place: tuple[float, float]) -> tuple[int, int]:
    return tuple(  # type: ignore[return-value]  # two sides in, two out
        2 * round(p * ((side - crop) // 2)) for side, p in zip(shape[:2], place, strict=True)
    )


#: Where the fixed views of an evaluation lie: the middle, then the corners.
FIXED_PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
