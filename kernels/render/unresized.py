"""render at the sensor's own size: mosaic to the teacher's tensor, every pixel written once.

A program owns ``BLOCK_PAIRS`` pairs of columns and walks down ``PERIODS`` 2x2 periods of rows. It
loads every row once, with the pair before and the pair after (L1 serves these), and keeps the last
rows in registers: Malvar's filters see five rows, a period step brings two. So three values are
loaded and normalised per pixel, where a tile without memory would take nine.

Predicted floor: memory, and the writes at that. A pixel reads 2 bytes (uint16) and writes 12
(float32) or 6 (half types); the arithmetic is about 100 instructions a pixel with Malvar and sRGB.
Turned by 90 degrees, or mirrored, the writes of a warp are no longer one wide piece; in
channels_last three stores interleave, and the cache puts their sectors together.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .demosaic import developed, matrix_of, planes_of
from .mosaic import levels_of
from .window import pixels_of, rows_from, rows_up_to

#: Pairs of columns (one to a thread), periods of rows, warps.
BLOCK_PAIRS, PERIODS, WARPS = 128, 4, 4


@triton.jit
def _store(out, slope, x_even, x_odd, column, inside, out_column, SUPERPIXEL: tl.constexpr):
    """One channel of a row of pixels; ``slope``: (mean, 1 / std)."""
    x = x_even if SUPERPIXEL else tl.interleave(x_even, x_odd)
    x = (x - slope[0]) * slope[1]
    tl.store(out + column.to(tl.int64) * out_column, x.to(out.dtype.element_ty), mask=inside)


@triton.jit
def render_unresized_kernel(
    mosaic, black, scale, ccm, planes, patterns, linearise, mean, std, out,
    sample_stride, row_stride, table_step, last_code, sensor_height, pairs,
    top, left, height, width, strips, chunks,
    origin, out_sample, out_row, out_column, out_channel,
    METHOD: tl.constexpr, TONE: tl.constexpr, PAIRS: tl.constexpr, ELEMENT: tl.constexpr,
    LINEARISE: tl.constexpr,
    ODD_LEFT: tl.constexpr, BLOCK_PAIRS: tl.constexpr, PERIODS: tl.constexpr,
):  # fmt: skip
    """Grid: strips of columns, chunks of rows, samples, on one axis.

    ``top``, ``left``, ``height``, ``width``: of the crop in pixels, which for superpixel are
    periods. ``out + origin`` is where the crop's first pixel goes, and the strides may be negative
    or exchanged: turning the picture upright is no more than that.
    """
    # ODD_LEFT: the crop starts in the odd column of a pair. A constant, so that the compiler sees
    # where neighbouring pixels can be written together.
    SUPERPIXEL: tl.constexpr = (METHOD == "superpixel") or (METHOD == "planes")
    NEIGHBOURS: tl.constexpr = not (SUPERPIXEL or METHOD == "none")
    REACH: tl.constexpr = (1 if METHOD == "bilinear" else 2) if NEIGHBOURS else 0
    program = tl.program_id(0)
    strip = program % strips
    chunk = (program // strips) % chunks
    sample = (program // strips // chunks).to(tl.int64)
    pattern = tl.load(patterns + sample).to(tl.int32) & 3
    levels = levels_of(black + 4 * sample, scale + 4 * sample, pattern)
    matrix = matrix_of(ccm + 9 * sample)
    of_planes = planes_of(planes + 12 * sample, METHOD)
    red = (tl.load(mean), 1.0 / tl.load(std))
    green = (tl.load(mean + 1), 1.0 / tl.load(std + 1))
    blue = (tl.load(mean + 2), 1.0 / tl.load(std + 2))
    sample_ptr = mosaic + sample * sample_stride
    table = linearise + sample * table_step
    out += origin + sample * out_sample

    if SUPERPIXEL:
        column = strip * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
        pair = tl.minimum(left + column, pairs - 1)
        first_period = top + chunk * PERIODS
        last_period = tl.minimum(first_period + PERIODS, top + height)
    else:
        column = strip * (2 * BLOCK_PAIRS) + tl.arange(0, 2 * BLOCK_PAIRS) - ODD_LEFT
        pair = left // 2 + strip * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
        pair = tl.minimum(pair, pairs - 1)
        first_period = top // 2 + chunk * PERIODS
        last_period = tl.minimum(first_period + PERIODS, (top + height + 1) // 2)
    inside = (column >= 0) & (column < width)

    row = 2 * first_period
    a, b, c, d = rows_up_to(
        sample_ptr, row_stride, table, last_code, row, sensor_height, pair, pairs, levels,
        REACH, PAIRS, ELEMENT, LINEARISE,
    )  # fmt: skip
    for period in range(first_period, last_period):
        row = 2 * period
        e, f = rows_from(
            sample_ptr, row_stride, table, last_code, row + 2, sensor_height, pair, pairs, levels,
            REACH, PAIRS, ELEMENT, LINEARISE,
        )  # fmt: skip
        for odd in tl.static_range(1 if SUPERPIXEL else 2):
            pixel_row = (period if SUPERPIXEL else row + odd) - top
            x = pixels_of(a, b, c, d, e, f, pattern, of_planes, odd, SUPERPIXEL, METHOD)
            there = inside & (pixel_row >= 0) & (pixel_row < height)
            row_ptr = out + pixel_row.to(tl.int64) * out_row
            r0, g0, b0 = developed(x[0], x[1], x[2], matrix, TONE)
            r1, g1, b1 = developed(x[3], x[4], x[5], matrix, TONE)
            _store(row_ptr, red, r0, r1, column, there, out_column, SUPERPIXEL)
            _store(row_ptr + out_channel, green, g0, g1, column, there, out_column, SUPERPIXEL)
            _store(row_ptr + 2 * out_channel, blue, b0, b1, column, there, out_column, SUPERPIXEL)
        a, b, c, d = c, d, e, f


def launch_unresized(call: dict[str, Any], place: dict[str, Any], out: Tensor, batch: int) -> None:
    """Fill ``out``. ``call``: the arguments about the mosaic, by name; ``place``: the strides of
    the picture (see ``isp_distill/ops/render/triton.py``)."""
    superpixel = call["METHOD"] in ("superpixel", "planes")
    columns = call["width"] if superpixel else (call["width"] + call["left"] % 2 + 1) // 2
    rows = call["height"] if superpixel else (call["height"] + call["top"] % 2 + 1) // 2
    strips, chunks = triton.cdiv(columns, BLOCK_PAIRS), triton.cdiv(rows, PERIODS)
    render_unresized_kernel[(strips * chunks * batch,)](
        out=out, strips=strips, chunks=chunks, ODD_LEFT=call["left"] % 2,
        BLOCK_PAIRS=BLOCK_PAIRS, PERIODS=PERIODS, num_warps=WARPS, **call, **place,
    )  # fmt: skip
