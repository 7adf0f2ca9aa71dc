"""The weights of the antialiased bilinear resize, in integers.

As ``F.interpolate(mode="bilinear", antialias=True, align_corners=False)``: target element i is the
weighted mean of the source elements k under a triangle around ``(i + 1/2) source / target``, as
wide as the reduction, or as one source element on either side where the picture grows.

In units of ``1 / (2 target)`` of a source element every distance is an integer,
``(2 k + 1) target - (2 i + 1) source``. The first tap's is computed in int64, the others are
``2 target`` apart and below ``4 max(source, target)``: no rounding, however large the picture, and
a kernel that meets the sources in their order needs one addition a tap.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_tap(i, source, target):
    """The first source element under the triangle of target ``i``, before any cut at the border,
    and its distance from the centre, int32. ``i``: int64."""
    reach = 2 * tl.maximum(source, target)
    below = (2 * i + 1) * source - reach - target
    # Rounded down, also below zero: a multiple of 2 target above it, where the sign is known.
    periods = reach // (2 * target) + 2
    k = (below + periods * (2 * target)) // (2 * target) - periods + 1
    return k.to(tl.int32), ((2 * k + 1) * target - (2 * i + 1) * source).to(tl.int32)


@triton.jit
def triangle(distance, per_reach):
    """A tap's weight before normalisation; ``per_reach``: ``1 / (2 max(source, target))``."""
    return tl.maximum(1.0 - tl.abs(distance).to(tl.float32) * per_reach, 0.0)


def most_taps(source: int, target: int) -> int:
    """How many source elements a triangle can cover."""
    return -(-2 * max(source, target) // target)
