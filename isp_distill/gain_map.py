"""Lens shading as a file states it: gains on a coarse grid over the mosaic, one for each plane.

Phones write it into their DNGs as the GainMap opcodes of OpcodeList2 (DNG specification 1.4,
chapter 7). A frame without it is dark at the corners, and coloured where the planes differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class GainMap:
    """Gains at the points of a regular grid, bilinear between them, held beyond the outer ones.

    Attributes:
        gains: float32 ``[4, V, H]``: R, Gr, Gb, B at V rows and H columns of points.
        top: the row of the mosaic at which the first row of points lies; may be outside.
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
        if not np.isfinite(places).all() or min(self.step_y, self.step_x) <= 0:
            raise ValueError(
                f"top, left, step_y, step_x are {places}: expected finite numbers, steps positive"
            )
