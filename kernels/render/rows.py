"""render where it reduces, first of two kernels: the mosaic to rows of the picture's height.

What it writes is ``[N, 3, h, W]`` float32, as high as the picture and as wide as the crop, which
``columns.py`` then reduces horizontally. Full-resolution RGB exists in registers alone.

Vertically first, because then a thread's pixels stay its own: it walks down its columns, develops a
pixel (demosaic, matrix, clip, tone), and adds it to two sums that it keeps, with no exchange
between threads. The triangle of an output row begins at the centre of the row before and ends at
the centre of the row after, so each source row lies in exactly two, with weights that add to 1.
A program owns ``rows_per_program`` output rows and develops the source rows once for all of them,
``1 + 1 / rows_per_program`` times in all; computing output pixel by output pixel would develop each
source pixel four times. One owner per sum, sources in their order: the result is the same every
time, and does not depend on how many rows a program has.

Traffic for 12 megapixels to 224: the mosaic, 24 MB, and 11 MB written and read again, most of it
from L2. Predicted floor of the display path: the special-function unit, six log2 and exp2 a pixel
of sRGB. With ``DEVELOP`` off (resize in linear light) neither matrix nor tone is applied here.

Where the picture is higher than the crop, this kernel keeps the crop's height, and the second
one interpolates between rows.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .demosaic import developed, matrix_of, planes_of
from .mosaic import levels_of
from .window import pixels_of, rows_from, rows_up_to

#: Pairs of columns (one to a thread), and warps.
BLOCK_PAIRS, WARPS = 64, 2
#: Programs that fill a large GPU: below this, output rows are spread over more of them.
ENOUGH_PROGRAMS = 4096


@triton.jit
def _store_row(rows, sums, total, column, inside, width, plane, SUPERPIXEL: tl.constexpr):
    """Three channels of a finished row, divided by the sum of its weights."""
    share = 1.0 / total
    for channel in tl.static_range(3):
        x = sums[channel]
        if not SUPERPIXEL:
            x = tl.interleave(x, sums[channel + 3])
        tl.store(rows + channel * plane + column, x * share, mask=inside)


@triton.jit
def _added(sums, x, weight, MAY_BE_NAN: tl.constexpr):
    """``sums + weight * x``; a pixel of weight 0 adds nothing, not even its NaN."""
    if MAY_BE_NAN:
        weighs = weight > 0.0
        return (
            sums[0] + tl.where(weighs, weight * x[0], 0.0),
            sums[1] + tl.where(weighs, weight * x[1], 0.0),
            sums[2] + tl.where(weighs, weight * x[2], 0.0),
            sums[3] + tl.where(weighs, weight * x[3], 0.0),
            sums[4] + tl.where(weighs, weight * x[4], 0.0),
            sums[5] + tl.where(weighs, weight * x[5], 0.0),
        )
    else:
        return (
            sums[0] + weight * x[0], sums[1] + weight * x[1], sums[2] + weight * x[2],
            sums[3] + weight * x[3], sums[4] + weight * x[4], sums[5] + weight * x[5],
        )  # fmt: skip


@triton.jit
def render_rows_kernel(
    mosaic, black, scale, ccm, planes, patterns, linearise, rows,
    sample_stride, row_stride, table_step, last_code, sensor_height, pairs,
    top, left, height, width, target, rows_per_program, strips, chunks,
    METHOD: tl.constexpr, TONE: tl.constexpr, DEVELOP: tl.constexpr,
    PAIRS: tl.constexpr, ELEMENT: tl.constexpr, LINEARISE: tl.constexpr, ODD_LEFT: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):  # fmt: skip
    """Grid: strips of columns, chunks of output rows, samples, on one axis.

    ``top``, ``left``, ``height``, ``width``: of the crop in pixels, which for superpixel are
    periods. ``target``: the height of the result, at most ``height``.
    """
    # ODD_LEFT: the crop starts in the odd column of a pair. A constant, so that the compiler sees
    # where neighbouring pixels can be written together.
    SUPERPIXEL: tl.constexpr = (METHOD == "superpixel") or (METHOD == "planes")
    NEIGHBOURS: tl.constexpr = not (SUPERPIXEL or METHOD == "none")
    REACH: tl.constexpr = (1 if METHOD == "bilinear" else 2) if NEIGHBOURS else 0
    MAY_BE_NAN: tl.constexpr = (ELEMENT == "float16") or (ELEMENT == "float32")
    program = tl.program_id(0)
    strip = program % strips
    chunk = (program // strips) % chunks
    sample = (program // strips // chunks).to(tl.int64)
    pattern = tl.load(patterns + sample).to(tl.int32) & 3
    levels = levels_of(black + 4 * sample, scale + 4 * sample, pattern)
    matrix = matrix_of(ccm + 9 * sample)
    of_planes = planes_of(planes + 12 * sample, METHOD)
    sample_ptr = mosaic + sample * sample_stride
    table = linearise + sample * table_step
    plane = tl.cast(target, tl.int64) * width
    rows += sample * 3 * plane

    if SUPERPIXEL:
        column = strip * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
        pair = tl.minimum(left + column, pairs - 1)
    else:
        column = strip * (2 * BLOCK_PAIRS) + tl.arange(0, 2 * BLOCK_PAIRS) - ODD_LEFT
        pair = left // 2 + strip * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
        pair = tl.minimum(pair, pairs - 1)
    inside = (column >= 0) & (column < width)

    # Segment s is the source rows from the centre of target row s - 1 (in 1 / (2 target) of a row:
    # (2 s - 1) height) up to that of row s; they belong to these two rows alone. The program
    # walks through segments [first, last], for the target rows [first, last).
    first = chunk * rows_per_program
    last = tl.minimum(first + rows_per_program, target)
    begin = ((2 * first.to(tl.int64) - 1) * height + target - 1) // (2 * target)
    end = ((2 * last.to(tl.int64) + 1) * height + target - 1) // (2 * target)
    begin = tl.where(first == 0, 0, begin).to(tl.int32)
    end = tl.minimum(end, height).to(tl.int32)
    past = (2 * begin.to(tl.int64) + 1) * target - (2 * first.to(tl.int64) - 1) * height
    past = past.to(tl.int32)  # how far the row is beyond the centre of target row s - 1
    segment = first
    per_segment = 1.0 / tl.cast(2 * height, tl.float32)

    if SUPERPIXEL:
        first_period, last_period = top + begin, top + end
    else:
        first_period, last_period = (top + begin) // 2, (top + end + 1) // 2
    row = 2 * first_period
    a, b, c, d = rows_up_to(
        sample_ptr, row_stride, table, last_code, row, sensor_height, pair, pairs, levels,
        REACH, PAIRS, ELEMENT, LINEARISE,
    )  # fmt: skip
    zero = tl.zeros((BLOCK_PAIRS,), tl.float32)
    upper = (zero, zero, zero, zero, zero, zero)  # sums of target row segment - 1
    lower = (zero, zero, zero, zero, zero, zero)  # and of target row segment
    upper_total = 0.0
    lower_total = 0.0
    for period in range(first_period, last_period):
        row = 2 * period
        e, f = rows_from(
            sample_ptr, row_stride, table, last_code, row + 2, sensor_height, pair, pairs, levels,
            REACH, PAIRS, ELEMENT, LINEARISE,
        )  # fmt: skip
        for odd in tl.static_range(1 if SUPERPIXEL else 2):
            pixel_row = (period if SUPERPIXEL else row + odd) - top
            x = pixels_of(a, b, c, d, e, f, pattern, of_planes, odd, SUPERPIXEL, METHOD)
            if DEVELOP:
                p = developed(x[0], x[1], x[2], matrix, TONE)
                q = developed(x[3], x[4], x[5], matrix, TONE)
                x = (p[0], p[1], p[2], q[0], q[1], q[2])
            if (pixel_row >= begin) & (pixel_row < end):
                if past >= 2 * height:
                    if segment > first:
                        _store_row(rows + (segment - 1).to(tl.int64) * width, upper, upper_total,
                                   column, inside, width, plane, SUPERPIXEL)  # fmt: skip
                    upper, upper_total = lower, lower_total
                    lower = (zero, zero, zero, zero, zero, zero)
                    lower_total = 0.0
                    past -= 2 * height
                    segment += 1
                weight = past.to(tl.float32) * per_segment
                lower = _added(lower, x, weight, MAY_BE_NAN)
                upper = _added(upper, x, 1.0 - weight, MAY_BE_NAN)
                lower_total += weight
                upper_total += 1.0 - weight
                past += 2 * target
        a, b, c, d = c, d, e, f
    _store_row(rows + (last - 1).to(tl.int64) * width, upper, upper_total, column, inside, width,
               plane, SUPERPIXEL)  # fmt: skip


def rows_per_program(target: int, strips: int, batch: int) -> int:
    """Output rows of a program: up to 8, fewer where the GPU would not be filled."""
    rows = 8
    while rows > 1 and triton.cdiv(target, rows) * strips * batch < ENOUGH_PROGRAMS:
        rows //= 2
    return rows


def launch_rows(call: dict[str, Any], rows: Tensor, develop: bool) -> None:
    """Fill ``rows`` ``[N, 3, h, W]`` float32, contiguous. ``call``: the arguments about the mosaic,
    by name (see ``isp_distill/ops/render/triton.py``)."""
    mosaic = {name: value for name, value in call.items() if name not in ("mean", "std")}
    superpixel = call["METHOD"] in ("superpixel", "planes")
    columns = call["width"] if superpixel else (call["width"] + call["left"] % 2 + 1) // 2
    batch, _, target, _ = rows.shape
    strips = triton.cdiv(columns, BLOCK_PAIRS)
    of_each = rows_per_program(target, strips, batch)
    chunks = triton.cdiv(target, of_each)
    render_rows_kernel[(strips * chunks * batch,)](
        rows=rows, target=target, rows_per_program=of_each, strips=strips, chunks=chunks,
        DEVELOP=develop, ODD_LEFT=call["left"] % 2, BLOCK_PAIRS=BLOCK_PAIRS, num_warps=WARPS,
        **mosaic,
    )  # fmt: skip
