"""Views: one sample's crop, in whole CFA periods, its pattern tracked through flips."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isp_distill.arguments import whole_number
from isp_distill.data.draw import Draw
from isp_distill.data.source import RowReader
from isp_distill.errors import RawError
from isp_distill.raw.binning import bin_mosaic
from isp_distill.raw.companding import linear_values
from isp_distill.raw.filters import moved
from isp_distill.raw.framing import Rectangle
from isp_distill.raw.image import RawImage
from isp_distill.raw.pixels import Pixels
from isp_distill.raw.resize import resize_mosaic

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class View:
    """How samples are cut.

    Attributes:
        crop: sides of the mosaic that comes out, sensor pixels, even.
        binning: sites of one colour averaged per side; None takes the largest that still leaves
            the crop, so that a large sensor is seen whole rather than through a keyhole.
        area: random resized crops: the least and largest share of the mosaic's area that a view
            of the training shows, resized to the crop. None: views of one size.
        ratio: least and largest width over height of a random resized crop, drawn log-uniformly.
        flip: turn half of the training's views upside down; left and right change places in half
            of them anyway.

    Raises:
        TypeError: for a crop or binning that is no whole number.
        ValueError: for an odd crop or a setting out of range.

    Examples:
        >>> raw = isp_distill.read_raw("photos/new.dng")
        >>> mosaic, isp = isp_distill.cut_view(raw, isp_distill.View(32))
        >>> mosaic.shape  # of 96 x 96 sensor pixels, three of one colour a side made one
        torch.Size([1, 32, 32])
    """

    crop: int
    binning: int | None = None
    area: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False

    def __post_init__(self) -> None:
        # Frozen, hence by this way: one of numpy's integers becomes Python's.
        object.__setattr__(self, "crop", whole_number(self.crop, "crop"))
        if self.binning is not None:
            object.__setattr__(self, "binning", whole_number(self.binning, "binning"))
        if self.crop < 2 or self.crop % 2:
            raise ValueError(f"crop must be even and at least 2, got {self.crop}")
        if self.binning is not None and self.binning < 1:
            raise ValueError(f"binning must be at least 1, got {self.binning}")
        if self.area is not None:
            if not 0 < self.area[0] <= self.area[1] <= 1:
                raise ValueError(f"area must be (least, largest) in (0, 1], got {self.area}")
            if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
                raise ValueError(f"ratio must be (least, largest), positive, got {self.ratio}")
            if self.binning is not None:
                raise ValueError("binning and area are two ways to choose the size: give one")

    def draw(self, random: np.random.Generator) -> Draw:
        """One random view."""
        place, mirror = (random.random(), random.random()), random.random() < 0.5
        # Drawn after the three that every view draws, so that views without these stay the same.
        flip = self.flip and random.random() < 0.5
        if self.area is None:
            return Draw(place, mirror, flip)
        low, high = (math.log(side) for side in self.ratio)
        area = random.uniform(*self.area)
        return Draw(place, mirror, flip, area, math.exp(random.uniform(low, high)))

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
        self,
        raw: RawImage,
        drawn: Draw,
        within: Rectangle | None = None,
        *,
        packed: bool = False,
    ) -> tuple[Array, RawImage]:
        """The view's mosaic, and the camera it is seen with (its pattern follows the flips).

        Args:
            raw: the whole image.
            drawn: the view.
            within: the part of the mosaic, in whole periods, that views are cut from.
            packed: leave the view of a packed mosaic packed where :class:`Pixels` can, and no pixel
                is changed by binning or resizing. The camera says how it is packed.

        Returns:
            The mosaic: uint16, or packed bytes; of a companding sensor, where the view is binned
            or resized, linear values, float32. The camera says what its numbers mean.

        Raises:
            RawError: the crop does not fit.
        """
        size = raw.height, raw.width
        window = self.window_within(size, within, drawn, raw.path)
        return self._finished(raw, raw.pixels.window(*window), window[:2], drawn, packed)

    def cut_rows(
        self,
        source: RowReader,
        index: int,
        drawn: Draw,
        within: Rectangle | None = None,
        *,
        packed: bool = False,
    ) -> tuple[Array, RawImage]:
        """The same view of a file of which only the view's rows are read."""
        path = str(source.paths[index])
        size = source.shape(index)
        top, left, height, width = self.window_within(size, within, drawn, path)
        raw = source.packed_rows(index, top, top + height)
        window = raw.pixels.window(0, left, height, width)
        return self._finished(raw, window, (0, left), drawn, packed)

    def window(self, height: int, width: int, drawn: Draw, path: str) -> tuple[int, int, int, int]:
        """Top, left, height and width of the view in a mosaic of this size: whole periods.

        Without ``area`` the view is a whole number of crops a side and begins with a whole block of
        that binning: binning the window gives what the window of the binned mosaic would.

        Raises:
            RawError: if the crop does not fit.
        """
        if drawn.area is None:
            factor = self.factor(height, width, path)
            block = 2 * factor
            top, left = _corner(
                (height // block * 2, width // block * 2), (self.crop, self.crop), drawn.place
            )
            return factor * top, factor * left, factor * self.crop, factor * self.crop
        pixels = drawn.area * height * width
        sides = math.sqrt(pixels / drawn.ratio), math.sqrt(pixels * drawn.ratio)
        rows, columns = (
            min(max(2, 2 * round(side / 2)), whole // 2 * 2)
            for side, whole in zip(sides, (height, width), strict=True)
        )
        return *_corner((height, width), (rows, columns), drawn.place), rows, columns

    def window_within(
        self, size: Sequence[int], within: Rectangle | None, drawn: Draw, path: str
    ) -> Rectangle:
        """:meth:`window` in a part of a mosaic of this size, counted from the mosaic's corner."""
        first_row, first_column, *part = (0, 0, *size) if within is None else within
        top, left, height, width = self.window(part[0], part[1], drawn, path)
        return first_row + top, first_column + left, height, width

    def _finished(
        self, raw: RawImage, window: Pixels, corner: tuple[int, int], drawn: Draw, packed: bool
    ) -> tuple[Array, RawImage]:
        """The window at ``corner`` of the image at the view's size, turned over as it is drawn."""
        gain_map = raw.gain_map
        if gain_map is not None:
            gain_map = gain_map.cropped(*corner).scaled(
                window.height / self.crop, window.width / self.crop
            )
        curve = raw.linearise
        if drawn.area is not None or window.height != self.crop:
            pixels = window.codes
            if curve is not None:
                pixels, curve = linear_values(pixels, curve), None
            if drawn.area is not None:
                window = Pixels.of(resize_mosaic(pixels, self.crop, self.crop))
            else:
                window = Pixels.of(bin_mosaic(pixels, window.height // self.crop))
        pattern = raw.pattern
        # Sides are even, so the two sites of a period change places: read them backwards.
        if drawn.mirror:
            window, pattern = window.mirrored(), moved(pattern, 0, 1)
            gain_map = None if gain_map is None else gain_map.mirrored(self.crop)
        if drawn.flip:
            window, pattern = window.flipped(), moved(pattern, 1, 0)
            gain_map = None if gain_map is None else gain_map.flipped(self.crop)
        window = window if packed else window.unpacked()
        # Little memory, and what says how the view is packed.
        first = window.window(0, 0, 2, 2 if window.packing is None else window.width).copied()
        if window.array.dtype == np.float32:  # linear values, which an image does not hold
            first = Pixels.of(np.zeros((2, 2), np.uint16))
        camera = dataclasses.replace(
            raw,
            **first.fields(),
            pattern=pattern,
            default_crop=None,
            gain_map=gain_map,
            linearise=curve,
        )
        return window.array, camera

    def cut_picture(self, picture: Array, drawn: Draw) -> Array:
        """The view of an RGB picture ``[H, W, 3]``; without ``area``, its shorter side scaled."""
        from PIL import Image

        (height, width), (top, left, rows, columns) = self.picture_window(
            picture.shape[0], picture.shape[1], drawn
        )
        if drawn.area is None:
            size = (width, height)
            resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
            cut = resized[top : top + rows, left : left + columns]
        else:
            box = (left, top, left + columns, top + rows)
            sides = (self.crop, self.crop)
            cut = np.asarray(
                Image.fromarray(picture).resize(sides, Image.Resampling.LANCZOS, box=box)
            )
        cut = cut[:, ::-1] if drawn.mirror else cut
        return cut[::-1] if drawn.flip else cut

    def picture_part(self, height: int, width: int, drawn: Draw) -> tuple[float, ...]:
        """Top, left, height and width of the view of a picture, in the picture's own pixels."""
        sides, window = self.picture_window(height, width, drawn)
        scales = height / sides[0], width / sides[1]
        return tuple(part * scales[place % 2] for place, part in enumerate(window))

    def picture_window(
        self, height: int, width: int, drawn: Draw
    ) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        """The size at which a picture is cut, and the view's top, left, height and width there.

        Without ``area`` its shorter side is scaled to the crop; else it is cut as it is.
        """
        if drawn.area is not None:
            return (height, width), self.window(height, width, drawn, "")
        scale = self.crop / min(height, width)
        scaled = max(self.crop, round(height * scale)), max(self.crop, round(width * scale))
        top, left = _corner(scaled, (self.crop, self.crop), drawn.place)
        return scaled, (top, left, self.crop, self.crop)


def _corner(
    shape: tuple[int, ...], window: tuple[int, int], place: tuple[float, float]
) -> tuple[int, int]:
    top, left = (
        2 * round(p * ((side - part) // 2))
        for p, side, part in zip(place, shape, window, strict=True)
    )
    return top, left
