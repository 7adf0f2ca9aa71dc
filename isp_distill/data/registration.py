"""``register``: how a camera's own picture lies over the mosaic that it was made of.

Both show one shot, but the camera's picture is cut by a few pixels a side, scaled by a little, and
perhaps corrected for its lens. Our own render of the mosaic, in linear light and about 1000 pixels
wide, is laid over it: first roughly, at every scale that may be, then by the shifts of the nine
parts of a 3x3 grid, again and again until they no longer get smaller. What is left then is the
residual, for example the lens correction.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from isp_distill.data.camera_picture import is_picture
from isp_distill.data.phase_correlation import Peak, correlate, faded, structure
from isp_distill.errors import RawError
from isp_distill.files.pillow import pillow
from isp_distill.isp.camera import ISP
from isp_distill.ops.render.call import render
from isp_distill.raw.changes import binned_values
from isp_distill.raw.framing import Rectangle
from isp_distill.raw.image import RawImage, upright

Array = np.ndarray[Any, Any]

#: The longer side of the render that pictures are compared with; residuals are in its pixels.
WIDTH = 1000
#: Below it a picture is too small to be registered, pixels a side.
LEAST_SIDE = 32
# The longer side at which every scale is tried, and how far apart the scales are: what is between
# two of them moves the edges by half a pixel of that.
_COARSE, _STEP = 256, 0.008
# A picture may show a little more than the mosaic (which lacks odd rows), and may be cut to a
# quarter less.
_LEAST, _MOST = 0.985, 1.27
# Parts of the grid that must show the same; of so many a scale and a shift can be fitted.
_PARTS = 4
#: A part counts where its peak stands out by so many standard deviations; the highest of noise of
#: this size stands out by five.
PROMINENCE = 8.0
# How far a part is looked for: this share of its sides.
_REACH = 0.12
_ROUNDS = 2

#: For each part of a 3x3 grid over the mosaic, row by row: how far it is off, or None where its
#: texture does not say.
Grid = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Registration:
    """How a picture lies over an upright mosaic.

    The point ``(y, x)`` of the mosaic, counted from its top left corner in its pixels, is the point
    ``(shift[0] + scale * y, shift[1] + scale * x)`` of the picture.

    Attributes:
        scale: pixels of the picture a pixel of the mosaic.
        shift: where the mosaic's top left corner lies in the picture, down and right in its pixels;
            negative where the picture is cut.
        residual: how far the worst part of the grid is off, in pixels of a mosaic 1000 pixels long.
        grid: the same of each part of a 3x3 grid, row by row; None where a part has no texture
            that both share.
        mosaic: height and width of the upright mosaic.
        picture: height and width of the upright picture.

    Examples:
        >>> placed = isp_distill.Registration(0.5, (-4.0, -6.0), 0.1, (), (96, 128), (40, 52))
        >>> placed.window((8, 12, 32, 32))  # top, left, bottom, right in the picture
        (0.0, 0.0, 16.0, 16.0)
        >>> placed.shown  # of the mosaic: top, left, height, width
        (8, 12, 80, 104)
    """

    scale: float
    shift: tuple[float, float]
    residual: float
    grid: Grid
    mosaic: tuple[int, int]
    picture: tuple[int, int]

    def window(self, rectangle: Rectangle) -> tuple[float, float, float, float]:
        """Where a rectangle of the mosaic lies in the picture: top, left, bottom, right.

        Args:
            rectangle: top, left, height and width in the mosaic, pixels.
        """
        top, left, height, width = rectangle
        return (
            self.shift[0] + self.scale * top,
            self.shift[1] + self.scale * left,
            self.shift[0] + self.scale * (top + height),
            self.shift[1] + self.scale * (left + width),
        )

    @property
    def shown(self) -> Rectangle:
        """The part of the mosaic that the picture shows, in whole CFA periods: top, left, height,
        width.
        """
        edges = []
        for axis in (0, 1):
            first = math.ceil(-self.shift[axis] / self.scale / 2 - 1e-6) * 2
            last = (self.picture[axis] - self.shift[axis]) / self.scale
            edges.append((max(0, first), min(self.mosaic[axis], math.floor(last / 2 + 1e-6) * 2)))
        (top, bottom), (left, right) = edges
        return top, left, bottom - top, right - left

    @property
    def parts(self) -> int:
        """How many parts of the grid show the same in both."""
        return sum(value is not None for row in self.grid for value in row)


def register(raw: RawImage, picture: Array) -> Registration:
    """Find how a camera's own picture lies over the mosaic that it was made of.

    Args:
        raw: what :func:`isp_distill.read_raw` returned; it is turned upright first.
        picture: the camera's, upright: uint8 ``[H, W, 3]``, of any size.

    Returns:
        The :class:`Registration`. Its ``residual`` says how well it fits: about 0.1 where the
        picture is cut and scaled, some pixels where its lens was corrected too.

    Raises:
        RawError: fewer than 4 of 9 parts show the same in both: it is another picture, or has no
            texture; the message says how many.
        TypeError: ``raw`` is no RawImage.
        ValueError: the picture is not uint8 ``[H, W, 3]``, or a side is below 32 pixels.

    Examples:
        >>> raw = isp_distill.upright(isp_distill.read_raw("photos/new.dng"))
        >>> isp = isp_distill.ISP.from_raw(raw, tone="gamma")
        >>> whole = isp_distill.render(torch.from_numpy(raw.mosaic)[None], isp)[0]
        >>> picture = (255 * whole).byte().permute(1, 2, 0).numpy()
        >>> placed = isp_distill.register(raw, picture[4:-4, 6:-6])
        >>> round(placed.scale, 2), [round(side) for side in placed.shift]
        (1.0, [-4, -6])
    """
    ours = _Render.of(raw)
    theirs = _Scaled.of(picture)
    found = _coarse(ours, theirs)
    for side in (WIDTH // 2, WIDTH):
        found = _refined(ours, theirs, found, side)
    placed = measured(found, ours, theirs)
    if placed.parts < _PARTS:
        raise RawError(
            raw.path or "the RAW image",
            f"its picture does not show what its mosaic does: {placed.parts} of 9 parts of it are "
            f"the same ({_PARTS} are needed); it is the picture of another shot, or has no texture",
        )
    return placed


def misaligned(raw: RawImage, picture: Array, placed: Registration) -> Registration:
    """How well a registration that was found for other files fits this one.

    Args:
        raw: its mosaic, which is as large as theirs.
        picture: uint8 ``[H, W, 3]``; it may be smaller than theirs, of the same content.
        placed: theirs.

    Returns:
        The same scale and shift, with the residual and the grid of this file.
    """
    theirs = _Scaled.of(picture)
    factor = theirs.shape[1] / placed.picture[1]
    scale, shift = placed.scale * factor, (placed.shift[0] * factor, placed.shift[1] * factor)
    here = dataclasses.replace(placed, scale=scale, shift=shift, picture=theirs.shape)
    found = measured(here, _Render.of(raw), theirs)
    return dataclasses.replace(placed, residual=found.residual, grid=found.grid)


@dataclass(frozen=True)
class _Render:
    """Our own picture of a mosaic.

    Attributes:
        luma: float32 ``[h, w]``, the longer side 1000 at most.
        mosaic: height and width of the mosaic.
        covers: height and width of the part of it that the picture shows, from the top left.
    """

    luma: Array
    mosaic: tuple[int, int]
    covers: tuple[int, int]

    @classmethod
    def of(cls, raw: RawImage) -> _Render:
        if not isinstance(raw, RawImage):
            raise TypeError(f"register takes a RawImage (read_raw), not {type(raw).__name__}")
        raw = upright(raw)
        mosaic = raw.height, raw.width
        factor = max(1, max(mosaic) // WIDTH)
        values, camera = binned_values(raw, factor)
        longer = max(values.shape)
        size = None
        if longer > WIDTH:
            size = [max(3, round(side * WIDTH / longer)) for side in values.shape]
        isp = ISP.from_raw(camera, demosaic="bilinear", tone="linear")
        pixels = torch.from_numpy(np.ascontiguousarray(values))[None]
        picture = render(pixels, isp, size=size, resize_in="linear")[0].numpy()
        return cls(
            _luma(picture.transpose(1, 2, 0)), mosaic, tuple(factor * side for side in values.shape)
        )

    def at(self, longer: int) -> tuple[Array, tuple[float, float]]:
        """At most so long, and how many of its pixels are one of the mosaic, down and across."""
        luma = self.luma
        if max(luma.shape) > longer:
            size = [max(8, round(side * longer / max(luma.shape))) for side in luma.shape]
            luma = _resized(luma, size)
        down, across = (a / b for a, b in zip(luma.shape, self.covers, strict=True))
        return luma, (down, across)


@dataclass(frozen=True)
class _Scaled:
    """A camera's picture.

    Attributes:
        luma: float32 ``[h, w]``; smaller than the picture where that is very large.
        shape: height and width of the picture.
        factor: pixels of the picture a side of one of ``luma``.
    """

    luma: Array
    shape: tuple[int, int]
    factor: int

    @classmethod
    def of(cls, picture: Array) -> _Scaled:
        if not is_picture(picture):
            what = (
                f"{picture.dtype} {list(picture.shape)}" if hasattr(picture, "shape") else picture
            )
            raise ValueError(f"a picture must be uint8 [H, W, 3], not {what!r}")
        height, width = picture.shape[:2]
        if min(height, width) < LEAST_SIDE:
            raise ValueError(
                f"a picture of {height} x {width} is too small: {LEAST_SIDE} pixels are needed"
            )
        factor = max(1, max(height, width) // (2 * WIDTH))
        if factor > 1:
            picture = np.asarray(_pillow().fromarray(picture).reduce(factor))
        return cls(_luma(picture / np.float32(255)), (height, width), factor)

    def over(self, placed: Registration, pixels: tuple[float, float], part: Rectangle) -> Array:
        """The picture's part that lies over a part of our render, in the render's pixels.

        Args:
            placed: how it lies.
            pixels: of the render a pixel of the mosaic.
            part: top, left, height, width in the render.
        """
        edges = []
        for number in range(4):
            axis = number % 2
            place = part[axis] if number < 2 else part[axis] + part[axis + 2]
            there = placed.shift[axis] + placed.scale * place / pixels[axis]
            edges.append(min(max(there / self.factor, 0.0), float(self.luma.shape[axis])))
        return _resized(self.luma, part[2:], (edges[1], edges[0], edges[3], edges[2]))


def _coarse(ours: _Render, theirs: _Scaled) -> Registration:
    """The scale and shift of the highest peak among those of every scale that may be."""
    luma, pixels = ours.at(_COARSE)
    field = faded(structure(luma))
    fits = max(a / b for a, b in zip(theirs.shape, ours.mosaic, strict=True))
    count = math.ceil(math.log(_MOST / _LEAST) / _STEP)
    best = Peak(0.0, 0.0, -1.0, 0.0), fits
    for number in range(count + 1):
        scale = fits * _LEAST * math.exp(number * _STEP)
        size = [
            max(8, round(side * pixel / scale))
            for side, pixel in zip(theirs.shape, pixels, strict=True)
        ]
        peak = correlate(field, faded(structure(_resized(theirs.luma, size))))
        if peak.height > best[0].height:
            best = peak, scale
    peak, scale = best
    shift = peak.down * scale / pixels[0], peak.right * scale / pixels[1]
    return Registration(scale, shift, math.inf, (), ours.mosaic, theirs.shape)


def _refined(ours: _Render, theirs: _Scaled, placed: Registration, longer: int) -> Registration:
    """A better scale and shift, from what each part of the grid lacks at this size."""
    for _ in range(_ROUNDS):
        seen = [part for part in _parts(ours, theirs, placed, longer) if part[1] is not None]
        if len(seen) < 2:
            break
        centres = np.array([centre for centre, _ in seen])
        offsets = np.array([offset for _, offset in seen])
        growth, moved = _fitted(centres, offsets)
        shift = [before + placed.scale * by for before, by in zip(placed.shift, moved, strict=True)]
        placed = dataclasses.replace(
            placed, scale=placed.scale * (1 + growth), shift=(shift[0], shift[1])
        )
    return placed


def _fitted(centres: Array, offsets: Array) -> tuple[float, tuple[float, float]]:
    """The growth and the shift that explain offsets ``[n, 2]`` at ``[n, 2]``, a wrong one aside."""
    count = len(centres)
    rows = np.zeros((2 * count, 3))
    rows[:, 0] = centres.T.ravel()
    rows[:count, 1] = rows[count:, 2] = 1
    wanted, weights = offsets.T.ravel(), np.ones(2 * count)
    answer = np.zeros(3)
    for _ in range(5):  # least squares, those that do not fit weighted down
        answer = np.linalg.lstsq(rows * weights[:, None], wanted * weights, rcond=None)[0]
        left = np.hypot(*(wanted - rows @ answer).reshape(2, count))
        usual = max(float(np.median(left)), 1e-6)
        weights = np.tile(1 / np.sqrt(1 + (left / (2 * usual)) ** 2), 2)
    return float(answer[0]), (float(answer[1]), float(answer[2]))


def measured(placed: Registration, ours: _Render, theirs: _Scaled) -> Registration:
    """A registration with its residual and grid as they are now."""
    longer = max(placed.mosaic)
    flat = []
    for _, offset in _parts(ours, theirs, placed, WIDTH):
        off = None if offset is None else math.hypot(*offset) * WIDTH / longer
        flat.append(off)
    flat += [None] * (9 - len(flat))
    grid = tuple(tuple(flat[start : start + 3]) for start in (0, 3, 6))
    worst = max((value for value in flat if value is not None), default=math.inf)
    return dataclasses.replace(placed, residual=worst, grid=grid)


_Part = tuple[tuple[float, float], tuple[float, float] | None]


def _parts(ours: _Render, theirs: _Scaled, placed: Registration, longer: int) -> list[_Part]:
    """The centre of each part of the grid, and how far the picture is off there, mosaic pixels.

    None where the two do not show the same. Nothing where they hardly overlap.
    """
    luma, pixels = ours.at(longer)
    edges = []
    for axis in (0, 1):
        first = -placed.shift[axis] / placed.scale * pixels[axis]
        last = first + placed.picture[axis] / placed.scale * pixels[axis]
        edges.append((max(0, math.ceil(first)), min(luma.shape[axis], math.floor(last))))
    (top, bottom), (left, right) = edges
    if min(bottom - top, right - left) < 24:
        return []
    whole = (top, left, bottom - top, right - left)
    mine = structure(luma[top:bottom, left:right])
    other = structure(theirs.over(placed, pixels, whole))
    found: list[_Part] = []
    for row in range(3):
        for column in range(3):
            rows = slice(row * whole[2] // 3, (row + 1) * whole[2] // 3)
            columns = slice(column * whole[3] // 3, (column + 1) * whole[3] // 3)
            centre = (
                (top + (rows.start + rows.stop) / 2) / pixels[0],
                (left + (columns.start + columns.stop) / 2) / pixels[1],
            )
            reach = _REACH * min(rows.stop - rows.start, columns.stop - columns.start)
            peak = correlate(faded(mine[rows, columns]), faded(other[rows, columns]), reach)
            offset = None
            if peak.prominence >= PROMINENCE:
                offset = (peak.down / pixels[0], peak.right / pixels[1])
            found.append((centre, offset))
    return found


def _luma(picture: Array) -> Array:
    """Rec. 709 luma of ``[h, w, 3]``: float32 ``[h, w]``."""
    luma: Array = picture.astype(np.float32) @ np.array((0.2126, 0.7152, 0.0722), np.float32)
    return luma


def _resized(
    luma: Array, size: tuple[int, ...] | list[int], box: tuple[float, ...] | None = None
) -> Array:
    """A part of a plane (left, top, right, bottom; all of it if None) at another size."""
    pillow = _pillow()
    image = pillow.fromarray(np.ascontiguousarray(luma))
    resized: Array = np.asarray(
        image.resize((size[1], size[0]), pillow.Resampling.BICUBIC, box=box)
    )
    return resized


def _pillow() -> Any:
    return pillow("laying pictures over mosaics needs")
