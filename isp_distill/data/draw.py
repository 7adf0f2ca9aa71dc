"""``Draw``: one view among those that a :class:`~isp_distill.View` allows."""

from __future__ import annotations

from typing import NamedTuple


class Draw(NamedTuple):
    """One view among those that a :class:`View` allows.

    Attributes:
        place: down and across, 0 to 1.
        mirror: whether left and right change places.
        flip: whether top and bottom do.
        area: share of the mosaic's area, or None for views of one size.
        ratio: width over height, with ``area``.
    """

    place: tuple[float, float]
    mirror: bool = False
    flip: bool = False
    area: float | None = None
    ratio: float = 1.0


#: Where the fixed views of an evaluation lie: the middle, then the corners.
FIXED_PLACES = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
