"""What the Triton kernels of ``raw_conv`` share: from the mosaic to the four planes of a tile.

A tile is ``[positions, pixels]``: the positions of the convolution kernel, row by row, against
consecutive output pixels of one sample. For each of its elements the four sensor values of one 2x2
period are loaded together: two loads, each of the two neighbours in a row at once (``PAIRS``, see
``kernels/sensor.py``),
so a warp reads whole periods and consecutive pixels read consecutive memory.

The pattern is data. Plane k is site ``pattern ^ k`` (see ``isp_distill/cfa.py``), so the row of
planes 0 and 1 is ``pattern >> 1``, the other row that of planes 2 and 3, and the two columns change
places where ``pattern & 1``. From there on everything is in the order R, Gr, Gb, B.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..sensor import load_pair

# mu-law companding, ITU-T G.711: log(1 + 255 x) / log(1 + 255), and log2(256) is 8.
_MU = tl.constexpr(255.0)
_LOG2_MU_1 = tl.constexpr(8.0)
_LN_2 = tl.constexpr(0.6931471805599453)
_LEAST = tl.constexpr(1e-8)


@triton.jit
def place_tile(
    tile, position_begin, out_width, out_pixels, left, top,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """The packed row and column of each element of a tile, and which elements are there."""
    pixel = tile * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    position = position_begin + tl.arange(0, BLOCK_POSITIONS)
    row = (pixel // out_width)[None, :] * STRIDE - top + (position // KERNEL)[:, None]
    column = (pixel % out_width)[None, :] * STRIDE - left + (position % KERNEL)[:, None]
    there = (pixel < out_pixels)[None, :] & (position < KERNEL * KERNEL)[:, None]
    return row, column, there


@triton.jit
def load_planes(
    sample_ptr, row_stride, table, last_code, pattern, row, column, inside,
    PAIRS: tl.constexpr, ELEMENT: tl.constexpr, LINEARISE: tl.constexpr,
):  # fmt: skip
    """The sensor values R, Gr, Gb, B of each element, float32; those of code 0 outside the mosaic.

    ``sample_ptr`` and ``row_stride`` count pairs where ``PAIRS``, else elements; ``table`` and
    ``last_code``: see :func:`~isp_distill.kernels.sensor.load_pair`.
    """
    first_row = pattern >> 1
    # Rows in int64: a frame may hold more than 2^31 bytes.
    upper = sample_ptr + (2 * row + first_row).to(tl.int64) * row_stride
    lower = sample_ptr + (2 * row + (1 - first_row)).to(tl.int64) * row_stride
    u0, u1 = load_pair(upper, column, inside, table, last_code, PAIRS, ELEMENT, LINEARISE)
    l0, l1 = load_pair(lower, column, inside, table, last_code, PAIRS, ELEMENT, LINEARISE)
    swap = (pattern & 1) == 1
    red, green_r = tl.where(swap, u1, u0), tl.where(swap, u0, u1)
    green_b, blue = tl.where(swap, l1, l0), tl.where(swap, l0, l1)
    return red, green_r, green_b, blue


@triton.jit
def clamped(x, CLIP: tl.constexpr):
    """Clamp to [0, 1] where ``CLIP``; NaN stays NaN, as in torch."""
    if CLIP:
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
        x = tl.minimum(x, 1.0, propagate_nan=tl.PropagateNan.ALL)
    return x


@triton.jit
def let_through(gradient, x, CLIP: tl.constexpr):
    """The gradient where :func:`clamped` lets x through, its bounds and NaN included, else 0."""
    if CLIP:
        return tl.where((x < 0.0) | (x > 1.0), 0.0, gradient)
    else:
        return gradient


@triton.jit
def at_least(x, least):
    """The larger of the two; NaN stays NaN, as in torch."""
    return tl.maximum(x, least, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def mixed(mix_ptr, k: tl.constexpr, red, green_r, green_b, blue):
    """Plane k of the mixed planes; ``mix_ptr`` is the sample's ``[4, 4]``."""
    return (
        tl.load(mix_ptr + 4 * k) * red
        + tl.load(mix_ptr + 4 * k + 1) * green_r
        + tl.load(mix_ptr + 4 * k + 2) * green_b
        + tl.load(mix_ptr + 4 * k + 3) * blue
    )


@triton.jit
def curved(x, gamma, CURVE: tl.constexpr):
    """The per-pixel curve; negative values count as black."""
    if CURVE == "sqrt":
        return tl.sqrt(at_least(x, _LEAST))
    elif CURVE == "log":
        return tl.log2(1.0 + at_least(x, 0.0) * _MU) / _LOG2_MU_1
    elif CURVE == "gamma":
        return tl.exp2(gamma * tl.log2(at_least(x, _LEAST)))
    else:
        return x


@triton.jit
def curve_derivative(x, gamma, CURVE: tl.constexpr):
    """The curve's derivative at x: 0 where the curve has cut x off."""
    if CURVE == "sqrt":
        return tl.where(x < _LEAST, 0.0, 0.5 / tl.sqrt(at_least(x, _LEAST)))
    elif CURVE == "log":
        slope = _MU / (_LOG2_MU_1 * _LN_2)
        return tl.where(x < 0.0, 0.0, slope / (1.0 + at_least(x, 0.0) * _MU))
    elif CURVE == "gamma":
        power = tl.exp2((gamma - 1.0) * tl.log2(at_least(x, _LEAST)))
        return tl.where(x < _LEAST, 0.0, gamma * power)
    else:
        return tl.full(x.shape, 1.0, tl.float32)


@triton.jit
def gamma_derivative(x, gamma):
    """The derivative of ``x ** gamma`` with respect to gamma."""
    log2_x = tl.log2(at_least(x, _LEAST))
    return tl.exp2(gamma * log2_x) * log2_x * _LN_2


@triton.jit
def normalised_planes(
    red, green_r, green_b, blue, black_ptr, scale_ptr
):  # fmt: skip
    """``(x - black) * scale`` before any clamp; ``black_ptr``, ``scale_ptr``: the sample's [4]."""
    red = (red - tl.load(black_ptr)) * tl.load(scale_ptr)
    green_r = (green_r - tl.load(black_ptr + 1)) * tl.load(scale_ptr + 1)
    green_b = (green_b - tl.load(black_ptr + 2)) * tl.load(scale_ptr + 2)
    blue = (blue - tl.load(black_ptr + 3)) * tl.load(scale_ptr + 3)
    return red, green_r, green_b, blue


@triton.jit
def _finish(x, k: tl.constexpr, gamma, padding_ptr, inside, there, CURVE: tl.constexpr,
            PADDED: tl.constexpr):  # fmt: skip
    """The curve, and what the padding holds."""
    x = curved(x, gamma, CURVE)
    border = 0.0
    if PADDED:
        border = tl.load(padding_ptr + k)
    return tl.where(inside, x, tl.where(there, border, 0.0))


@triton.jit
def planes_of_tile(
    sample_ptr, row_stride, table, last_code, pattern, row, column, there, height, width,
    black_ptr, scale_ptr, mix_ptr, gamma, padding_ptr,
    PAIRS: tl.constexpr, ELEMENT: tl.constexpr, LINEARISE: tl.constexpr, CLIP: tl.constexpr,
    MIX: tl.constexpr, CURVE: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """The convolution's input, plane by plane: normalised, clamped, mixed, curved, padded."""
    inside = there & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    r, gr, gb, b = load_planes(
        sample_ptr,
        row_stride,
        table,
        last_code,
        pattern,
        row,
        column,
        inside,
        PAIRS,
        ELEMENT,
        LINEARISE,
    )
    r, gr, gb, b = normalised_planes(r, gr, gb, b, black_ptr, scale_ptr)
    r, gr, gb, b = clamped(r, CLIP), clamped(gr, CLIP), clamped(gb, CLIP), clamped(b, CLIP)
    if MIX:
        mixed_r = clamped(mixed(mix_ptr, 0, r, gr, gb, b), CLIP)
        mixed_gr = clamped(mixed(mix_ptr, 1, r, gr, gb, b), CLIP)
        mixed_gb = clamped(mixed(mix_ptr, 2, r, gr, gb, b), CLIP)
        mixed_b = clamped(mixed(mix_ptr, 3, r, gr, gb, b), CLIP)
        r, gr, gb, b = mixed_r, mixed_gr, mixed_gb, mixed_b
    return (
        _finish(r, 0, gamma, padding_ptr, inside, there, CURVE, PADDED),
        _finish(gr, 1, gamma, padding_ptr, inside, there, CURVE, PADDED),
        _finish(gb, 2, gamma, padding_ptr, inside, there, CURVE, PADDED),
        _finish(b, 3, gamma, padding_ptr, inside, there, CURVE, PADDED),
    )
