"""What the Triton kernels of ``render`` share about colour: demosaicing, matrix, clip, tone curve.

Every filter of the demosaicings is symmetric in both directions, so a pixel's neighbourhood enters
as six numbers: the value itself, the sums of the two beside it and of the two above and below, the
same two sites away, and the sum of the four corners. Computing all four filters of a method from
them takes about 20 instructions; which of their results is red, green or blue depends on the plane
of the site, a scalar, so choosing costs seven selects and no divergence.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LEAST = tl.constexpr(1e-8)


@triton.jit
def demosaic(
    here, beside, upright, corners, beside_2, upright_2, plane, METHOD: tl.constexpr
):  # fmt: skip
    """Camera red, green, blue of a pixel; ``plane``: the scalar plane of its site."""
    cross = beside + upright
    if METHOD == "bilinear":
        green, across = 0.25 * cross, 0.25 * corners
        row, column = 0.5 * beside, 0.5 * upright
    else:  # Malvar, He, Cutler 2004, figure 2, over 8
        around = beside_2 + upright_2
        green = 0.5 * here + 0.25 * cross - 0.125 * around
        across = 0.75 * here + 0.25 * corners - 0.1875 * around
        own = 0.625 * here - 0.125 * corners
        row = own + 0.5 * beside - 0.125 * beside_2 + 0.0625 * upright_2
        column = own + 0.5 * upright - 0.125 * upright_2 + 0.0625 * beside_2
    in_red_row = tl.where(plane == 0, here, row)
    red = tl.where(plane < 2, in_red_row, tl.where(plane == 2, column, across))
    in_blue_row = tl.where(plane == 3, here, row)
    blue = tl.where(plane >= 2, in_blue_row, tl.where(plane == 1, column, across))
    return red, tl.where((plane == 0) | (plane == 3), green, here), blue


@triton.jit
def demosaic_pair(row, above, below, above_2, below_2, pattern, ODD_ROW: tl.constexpr,
                  METHOD: tl.constexpr):  # fmt: skip
    """The two pixels of a pair from five rows of :func:`load_row`: RGB of the even one, then of
    the odd one. For superpixel ``above`` is an even row, ``row`` the odd one below it, and both
    pixels are the period's one."""
    if METHOD == "superpixel":
        red, green, blue = superpixel(above[2], above[3], row[2], row[3], pattern)
        return red, green, blue, red, green, blue
    else:
        plane = (2 * ODD_ROW) ^ pattern
        r0, g0, b0 = demosaic(
            row[2], row[1] + row[3], above[2] + below[2],
            (above[1] + below[1]) + (above[3] + below[3]),
            row[0] + row[4], above_2[2] + below_2[2], plane, METHOD,
        )  # fmt: skip
        r1, g1, b1 = demosaic(
            row[3], row[2] + row[4], above[3] + below[3],
            (above[2] + below[2]) + (above[4] + below[4]),
            row[1] + row[5], above_2[3] + below_2[3], plane ^ 1, METHOD,
        )  # fmt: skip
        return r0, g0, b0, r1, g1, b1


@triton.jit
def superpixel(s0, s1, s2, s3, pattern):
    """Red, green, blue of a period from its four sites."""
    swap = (pattern & 1) == 1
    u0, u1 = tl.where(swap, s1, s0), tl.where(swap, s0, s1)
    l0, l1 = tl.where(swap, s3, s2), tl.where(swap, s2, s3)
    turn = pattern >= 2
    red, green_r = tl.where(turn, l0, u0), tl.where(turn, l1, u1)
    green_b, blue = tl.where(turn, u0, l0), tl.where(turn, u1, l1)
    return red, 0.5 * (green_r + green_b), blue


@triton.jit
def matrix_of(ccm_ptr):
    """The nine numbers of a sample's colour matrix."""
    return (
        tl.load(ccm_ptr), tl.load(ccm_ptr + 1), tl.load(ccm_ptr + 2),
        tl.load(ccm_ptr + 3), tl.load(ccm_ptr + 4), tl.load(ccm_ptr + 5),
        tl.load(ccm_ptr + 6), tl.load(ccm_ptr + 7), tl.load(ccm_ptr + 8),
    )  # fmt: skip


@triton.jit
def toned(x, TONE: tl.constexpr):
    """Linear light, clipped to [0, 1], to display values. NaN stays NaN, as in torch."""
    x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    x = tl.minimum(x, 1.0, propagate_nan=tl.PropagateNan.ALL)
    # Powers through the two special-function instructions that a GPU has for them, log2 and exp2:
    # together within 1e-6 of the curve, where half a 12-bit step is 1.2e-4.
    if TONE == "linear":
        return x
    bright = tl.maximum(x, _LEAST, propagate_nan=tl.PropagateNan.ALL)
    if TONE == "srgb":
        power = tl.exp2(tl.log2(bright) * (1.0 / 2.4))
        return tl.where(x < 0.0031308, 12.92 * x, 1.055 * power - 0.055)
    power = tl.exp2(tl.log2(bright) * (1.0 / 2.2))
    if TONE == "smoothstep":
        return power * power * (3.0 - 2.0 * power)
    return power


@triton.jit
def developed(red, green, blue, m, TONE: tl.constexpr):
    """Camera RGB to display values: colour matrix, clip, tone curve."""
    return (
        toned(m[0] * red + m[1] * green + m[2] * blue, TONE),
        toned(m[3] * red + m[4] * green + m[5] * blue, TONE),
        toned(m[6] * red + m[7] * green + m[8] * blue, TONE),
    )
