"""Lens shading as a file states it: gains on a coarse grid over the mosaic, one for each plane.

Phones write it into their DNGs as the GainMap opcodes of OpcodeList2 (DNG specification 1.4,
chapter 7), which ``opcodes.py`` reads. A frame without it is dark at the corners, and coloured
where the planes differ.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isp_distill.raw.metadata import SITE_PLANES

#: The most points a file's grid may have: no camera comes near, and a batch holds a grid a sample.
MAX_POINTS = 16384
#: The most along one axis. The grids of a batch are padded to the longest, each axis alone.
MAX_POINTS_AN_AXIS = 512
# Rows corrected at a time, so that what is held in between stays small.
_BAND_ROWS = 256


@dataclass(frozen=True, eq=False)
class GainMap:
    """Gains at the points of a regular grid, bilinear between them, held beyond the outer ones.

    Attributes:
        gains: float32 ``[4, V, H]``: R, Gr, Gb, B at V rows and H columns of points.
        top: the row of the mosaic at which the first row of points lies; may be outside. Row 3
            means the middle of its sites.
        left: its column.
        step_y: rows of the mosaic between two rows of points; positive.
        step_x: columns between two columns of points; positive.
    """

    gains: np.ndarray
    top: float
    left: float
    step_y: float
    step_x: float

    def __post_init__(self) -> None:
        """Refuse what cannot be a gain map.

        Raises:
            ValueError: the gains are no ``[4, V, H]`` of finite positive numbers, or a place or a
                step is not finite, or a step is not positive.
        """
        gains = np.ascontiguousarray(self.gains, dtype=np.float32)
        if gains.ndim != 3 or gains.shape[0] != 4 or 0 in gains.shape:
            raise ValueError(f"gains have shape {list(gains.shape)}: expected [4, V, H]")
        if not (np.isfinite(gains).all() and (gains > 0).all()):
            raise ValueError("gains must be finite and positive")
        object.__setattr__(self, "gains", gains)
        places = (self.top, self.left, self.step_y, self.step_x)
        if not all(math.isfinite(place) for place in places) or min(self.step_y, self.step_x) <= 0:
            raise ValueError(
                f"top, left, step_y, step_x are {places}: expected finite numbers, steps positive"
            )

    # ------------------------------------------------------------------ as the mosaic is moved

    def cropped(self, top: float, left: float) -> GainMap:
        """The map over a part of the mosaic that begins at this row and column."""
        return replace(self, top=self.top - top, left=self.left - left)

    def mirrored(self, width: int) -> GainMap:
        """The map over the mosaic with left and right exchanged.

        Args:
            width: columns of the mosaic.
        """
        last = self.left + (self.gains.shape[2] - 1) * self.step_x
        return replace(self, gains=self.gains[:, :, ::-1], left=width - 1 - last)

    def flipped(self, height: int) -> GainMap:
        """The map over the mosaic with top and bottom exchanged.

        Args:
            height: rows of the mosaic.
        """
        last = self.top + (self.gains.shape[1] - 1) * self.step_y
        return replace(self, gains=self.gains[:, ::-1], top=height - 1 - last)

    def transposed(self) -> GainMap:
        """The map over the transposed mosaic: red rows become red columns, so Gr and Gb swap."""
        return GainMap(
            self.gains.transpose(0, 2, 1)[[0, 2, 1, 3]],
            self.left, self.top, self.step_x, self.step_y,
        )  # fmt: skip

    def scaled(self, factor_y: float, factor_x: float) -> GainMap:
        """The map over the mosaic at another size.

        The edges of the two mosaics coincide. Binning also moves the sites of a period a little
        towards each other, by less than one binned site. That is ignored: gains change slowly.

        Args:
            factor_y: rows of the mosaic that become one row.
            factor_x: columns that become one column.
        """
        return replace(
            self,
            top=(self.top + 0.5) / factor_y - 0.5,
            left=(self.left + 0.5) / factor_x - 0.5,
            step_y=self.step_y / factor_y,
            step_x=self.step_x / factor_x,
        )

    # ------------------------------------------------------------------ applied

    def field(self, pattern: str, height: int, width: int, top: int = 0) -> np.ndarray:
        """The gain of every site of some rows of the mosaic: float32 ``[height, width]``.

        Args:
            pattern: of the mosaic.
            height: how many rows, even.
            width: columns of the mosaic, even.
            top: the first of the rows, even.
        """
        field = np.empty((height, width), np.float32)
        points_y, points_x = self.gains.shape[1:]
        for site, plane in enumerate(SITE_PLANES[pattern]):
            row, column = divmod(site, 2)
            down = (np.arange(top + row, top + height, 2) - self.top) / self.step_y
            across = (np.arange(column, width, 2) - self.left) / self.step_x
            field[row::2, column::2] = (
                _shares(down, points_y) @ self.gains[plane] @ _shares(across, points_x).T
            )
        return field

    def apply(
        self, mosaic: np.ndarray, pattern: str, black: tuple[float, ...], white: float
    ) -> np.ndarray:
        """The mosaic with its shading corrected: ``(x - black) * gain + black``, rounded to uint16.

        Nothing is lifted above ``white``: a value that was below stops there (DNG specification
        1.4, chapter 7: linear values are clipped to 1), so a saturated sky is one white. Below 0
        and above 65535, which no sensor value should reach, values are clipped to uint16.

        Args:
            mosaic: uint16 ``[H, W]``, even sides.
            pattern: of the mosaic.
            black: levels of R, Gr, Gb, B, raw units.
            white: raw units.

        Returns:
            uint16 ``[H, W]``, another array.
        """
        height, width = mosaic.shape
        levels = np.array([black[p] for p in SITE_PLANES[pattern]], np.float32).reshape(2, 2)
        out = np.empty((height, width), np.uint16)
        for top in range(0, height, _BAND_ROWS):
            band = mosaic[top : top + _BAND_ROWS].astype(np.float32)
            rows = len(band)
            limit = np.maximum(band, np.float32(white))
            offset = np.tile(levels, (rows // 2, width // 2))
            band = (band - offset) * self.field(pattern, rows, width, top) + offset
            out[top : top + rows] = np.clip(np.rint(np.minimum(band, limit)), 0, 65535)
        return out

    # ------------------------------------------------------------------ as JSON

    def as_json(self) -> dict[str, Any]:
        """The map as plain values; the gains as their bytes (little-endian) in base64."""
        return {
            "points": list(self.gains.shape[1:]),
            "gains": base64.b64encode(self.gains.astype("<f4").tobytes()).decode("ascii"),
            "place": [self.top, self.left, self.step_y, self.step_x],
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> GainMap:
        """The map that :meth:`as_json` wrote.

        Raises:
            ValueError: it is none: other keys, types, sizes or numbers.
        """
        try:
            rows, columns = (int(n) for n in stored["points"])
            top, left, step_y, step_x = (float(v) for v in stored["place"])
            gains = np.frombuffer(base64.b64decode(stored["gains"], validate=True), "<f4")
            if min(rows, columns) < 1 or gains.size != 4 * rows * columns:
                raise ValueError(f"{gains.size} gains for 4 x {rows} x {columns} points")
            return cls(gains.reshape(4, rows, columns), top, left, step_y, step_x)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"is no gain map: {error}") from error


def _shares(places: np.ndarray, points: int) -> np.ndarray:
    """The weight of each point at each place, float32 ``[len(places), points]``; see GainMap."""
    held = np.clip(places, 0, points - 1)
    shares: np.ndarray = np.maximum(0, 1 - np.abs(held[:, None] - np.arange(points)))
    return shares.astype(np.float32)
