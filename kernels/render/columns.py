"""render where it resizes, second of two kernels: rows to the teacher's tensor.

``rows.py`` has reduced the picture vertically to ``[N, 3, h, W]`` float32. Here a program
owns ``BLOCK_PIXELS`` pixels of one output row and lays the taps of a pixel along ``BLOCK_TAPS``
neighbouring threads: a warp then reads whole sectors, where one thread to a pixel would read one
value in every ``W / w``. Each thread adds up its own taps, and only at the end are they summed
across threads, in a fixed order. The weights come out of integers (``triangle.py``): no
table, nothing to wait for on the host.

Where the picture is higher than the crop the rows are the crop's own, and two of them are mixed.
Where the resize is in linear light, matrix, clip and tone curve follow it here, at the small size.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .demosaic import developed, matrix_of
from .triangle import first_tap, most_taps, triangle

WARPS = 4


@triton.jit
def render_columns_kernel(
    rows, ccm, mean, std, out,
    height, width, target_height, target_width, most, blocks,
    origin, out_sample, out_row, out_column, out_channel,
    TONE: tl.constexpr, DEVELOP: tl.constexpr, TALLER: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_TAPS: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of pixels, output rows, samples, on one axis.

    ``most``: taps of a pixel. ``TALLER``: the picture is higher than ``rows``; else as high.
    """
    program = tl.program_id(0)
    pixel = (program % blocks) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    row = (program // blocks) % target_height
    sample = (program // blocks // target_height).to(tl.int64)
    plane = tl.cast(height, tl.int64) * width
    rows += sample * 3 * plane

    begin, distance = first_tap(pixel.to(tl.int64), width, target_width)
    per_reach = 0.5 / tl.cast(tl.maximum(width, target_width), tl.float32)
    zero = tl.zeros((BLOCK_PIXELS, BLOCK_TAPS), tl.float32)
    red, green, blue, total = zero, zero, zero, zero
    if TALLER:
        first_row, row_distance = first_tap(row.to(tl.int64), height, target_height)
        per_row = 0.5 / tl.cast(target_height, tl.float32)
    for source in tl.static_range(2 if TALLER else 1):
        if TALLER:
            source_row = first_row + source
            row_weight = triangle(row_distance + source * (2 * target_height), per_row)
            row_weight = tl.where((source_row >= 0) & (source_row < height), row_weight, 0.0)
        else:
            source_row = row
            row_weight = 1.0
        row_ptr = rows + source_row.to(tl.int64) * width
        for first in range(0, most, BLOCK_TAPS):
            tap = (first + tl.arange(0, BLOCK_TAPS))[None, :]
            column = begin[:, None] + tap
            weight = triangle(distance[:, None] + tap * (2 * target_width), per_reach) * row_weight
            weight = tl.where((column >= 0) & (column < width), weight, 0.0)
            # What has no weight is not read, so that not even its NaN counts.
            there = weight > 0.0
            red += weight * tl.load(row_ptr + column, mask=there, other=0.0)
            green += weight * tl.load(row_ptr + plane + column, mask=there, other=0.0)
            blue += weight * tl.load(row_ptr + 2 * plane + column, mask=there, other=0.0)
            total += weight
    inside = pixel < target_width
    share = 1.0 / tl.where(inside, tl.sum(total, 1), 1.0)
    r, g, b = tl.sum(red, 1) * share, tl.sum(green, 1) * share, tl.sum(blue, 1) * share
    if DEVELOP:
        r, g, b = developed(r, g, b, matrix_of(ccm + 9 * sample), TONE)
    out += origin + sample * out_sample + row.to(tl.int64) * out_row
    out += pixel.to(tl.int64) * out_column
    kind = out.dtype.element_ty
    r = (r - tl.load(mean)) * (1.0 / tl.load(std))
    g = (g - tl.load(mean + 1)) * (1.0 / tl.load(std + 1))
    b = (b - tl.load(mean + 2)) * (1.0 / tl.load(std + 2))
    tl.store(out, r.to(kind), mask=inside)
    tl.store(out + out_channel, g.to(kind), mask=inside)
    tl.store(out + 2 * out_channel, b.to(kind), mask=inside)


def tile_of(width: int, target: int) -> tuple[int, int]:
    """Pixels and taps of a tile. Eight floats are a sector, the least that memory hands out."""
    taps = min(8, triton.next_power_of_2(most_taps(width, target)))
    return min(256 // taps, triton.next_power_of_2(target)), taps


def launch_columns(
    rows: Tensor, call: dict[str, Any], place: dict[str, Any], out: Tensor,
    target: tuple[int, int], develop: bool,
) -> None:  # fmt: skip
    """Fill ``out`` from ``rows`` ``[N, 3, h, W]``, contiguous. ``target``: the picture's size as
    the sensor sees it; ``call`` and ``place`` as in ``unresized.py``."""
    batch, _, height, width = rows.shape
    pixels, taps = tile_of(width, target[1])
    blocks = triton.cdiv(target[1], pixels)
    render_columns_kernel[(blocks * target[0] * batch,)](
        rows=rows, ccm=call["ccm"], mean=call["mean"], std=call["std"], out=out,
        height=height, width=width, target_height=target[0], target_width=target[1],
        most=most_taps(width, target[1]), blocks=blocks, TONE=call["TONE"], DEVELOP=develop,
        TALLER=target[0] > height, BLOCK_PIXELS=pixels, BLOCK_TAPS=taps, num_warps=WARPS, **place,
    )  # fmt: skip
