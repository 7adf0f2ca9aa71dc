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
# The "log" tone, see isp_distill/ops/reference.py; 1 / log2(5001).
_MU = tl.constexpr(5000.0)
_PER_OCTAVE = tl.constexpr(0.0813802024)


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
def demosaic_pair(row, above, below, above_2, below_2, pattern, planes, ODD_ROW: tl.constexpr,
                  METHOD: tl.constexpr):  # fmt: skip
    """The two pixels of a pair from five rows of :func:`load_row`: RGB of the even one, then of
    the odd one. For superpixel ``above`` is an even row, ``row`` the odd one below it, and both
    pixels are the period's one.

    ``METHOD`` is "planes" for superpixels of a filter with four colours, which the matrix
    ``planes`` takes to three, and "none" for a mono sensor, whose sites are pixels."""
    if METHOD == "superpixel":
        red, green_r, green_b, blue = ordered(above[2], above[3], row[2], row[3], pattern)
        green = 0.5 * (green_r + green_b)
        return red, green, blue, red, green, blue
    elif METHOD == "planes":
        x0, x1, x2, x3 = ordered(above[2], above[3], row[2], row[3], pattern)
        red = planes[0] * x0 + planes[1] * x1 + planes[2] * x2 + planes[3] * x3
        green = planes[4] * x0 + planes[5] * x1 + planes[6] * x2 + planes[7] * x3
        blue = planes[8] * x0 + planes[9] * x1 + planes[10] * x2 + planes[11] * x3
        return red, green, blue, red, green, blue
    elif METHOD == "none":
        return row[2], row[2], row[2], row[3], row[3], row[3]
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
def ordered(s0, s1, s2, s3, pattern):
    """The planes of a period (R, Gr, Gb, B) from its four sites."""
    swap = (pattern & 1) == 1
    u0, u1 = tl.where(swap, s1, s0), tl.where(swap, s0, s1)
    l0, l1 = tl.where(swap, s3, s2), tl.where(swap, s2, s3)
    turn = pattern >= 2
    red, green_r = tl.where(turn, l0, u0), tl.where(turn, l1, u1)
    green_b, blue = tl.where(turn, u0, l0), tl.where(turn, u1, l1)
    return red, green_r, green_b, blue


@triton.jit
def matrix_of(ccm_ptr):
    """The nine numbers of a sample's colour matrix."""
    return (
        tl.load(ccm_ptr), tl.load(ccm_ptr + 1), tl.load(ccm_ptr + 2),
        tl.load(ccm_ptr + 3), tl.load(ccm_ptr + 4), tl.load(ccm_ptr + 5),
        tl.load(ccm_ptr + 6), tl.load(ccm_ptr + 7), tl.load(ccm_ptr + 8),
    )  # fmt: skip


@triton.jit
def planes_of(planes_ptr, METHOD: tl.constexpr):
    """The twelve numbers of a sample's matrix over the four planes, where it has one."""
    if METHOD == "planes":
        return (
            tl.load(planes_ptr), tl.load(planes_ptr + 1), tl.load(planes_ptr + 2),
            tl.load(planes_ptr + 3), tl.load(planes_ptr + 4), tl.load(planes_ptr + 5),
            tl.load(planes_ptr + 6), tl.load(planes_ptr + 7), tl.load(planes_ptr + 8),
            tl.load(planes_ptr + 9), tl.load(planes_ptr + 10), tl.load(planes_ptr + 11),
        )  # fmt: skip
    else:
        return (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@triton.jit
def toned(x, TONE: tl.constexpr):
    """Linear light, clipped to [0, 1], to display values. NaN stays NaN, as in torch."""
    x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    x = tl.minimum(x, 1.0, propagate_nan=tl.PropagateNan.ALL)
    # Powers through the two special-function instructions that a GPU has for them, log2 and exp2:
    # together within 1e-6 of the curve, where half a 12-bit step is 1.2e-4.
    if TONE == "linear":
        return x
    if TONE == "log":
        return tl.log2(x * _MU + 1.0) * _PER_OCTAVE  # a constant first would wrap the tensor
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
