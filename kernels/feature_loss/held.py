"""The feature loss where a row's channels fit the registers: read once, written once.

A program takes a tile ``[rows, channels]`` with all channels (filled up to a power of two) of
student and teacher, one load each, and writes the gradient from the values that it still holds: two
reads and one write, whatever is computed. Its tiles are those of ``distill_loss/held.py``. No
atomics: a program leaves its part of each sum, and they are added up in their order.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from isp_distill.kernels.distill_loss.held import (
    LONGEST_DENSE,
    LONGEST_ROW,
    rows_of_program,
    tile_of,
    tile_offsets,
)
from isp_distill.kernels.distill_loss.layout import Layout
from isp_distill.kernels.feature_loss.launch import arrange
from isp_distill.kernels.feature_loss.math import (
    describe_rows,
    gradient,
    pull,
    scale_of,
    settle,
    tile,
    value_of,
)
from torch import Tensor


@triton.jit
def feature_held_kernel(
    student, teacher, grad, mean, scale, mask, weight, factors, row_losses, losses, similarities,
    s_channel, s_n, s_a, s_b, t_channel, t_n, t_a, t_b, g_channel, g_n, g_a, g_b,
    row_n, row_a, row_b, neighbours, others, size_a, rows_per_weight,
    cosine_share, element_share, beta, gradient_scale,
    COSINE: tl.constexpr, ELEMENTS: tl.constexpr, NORMALISE: tl.constexpr,
    ALONG_CHANNELS: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """One tile: ``BLOCK_ROWS`` rows along the last row axis, every channel.

    ``neighbours`` is the number of neighbours in memory divided by UNIT, ``others`` the number of
    channels or of rows along the last axis, whichever is left.
    """
    program, channels, n, a, b, there = rows_of_program(
        neighbours, others, size_a, ALONG_CHANNELS, UNIT, BLOCK_ROWS
    )
    index = tl.arange(0, BLOCK_CHANNELS)
    exists = (index < channels)[None, :]
    row, inside, of_loss, of_cosine = describe_rows(
        n, a, b, there, mask, weight, factors, row_n, row_a, row_b, rows_per_weight
    )
    # Rows outside the mask are left out where a row is read by itself. Among positions that are
    # read together a mask of the load would break it into single values.
    read = inside if ALONG_CHANNELS else there
    read = read[:, None] & exists
    counted = inside[:, None] & exists
    at = tile_offsets(n, a, b, index, s_channel, s_n, s_a, s_b, ALONG_CHANNELS, UNIT)
    s = tile(student, at, read, counted, mean, scale, index, channels, NORMALISE)
    at = tile_offsets(n, a, b, index, t_channel, t_n, t_a, t_b, ALONG_CHANNELS, UNIT)
    t = tile(teacher, at, read, counted, mean, scale, index, channels, NORMALISE)
    if NORMALISE == "layer":
        s = tl.where(counted, s - (tl.sum(s, 1) / channels)[:, None], 0.0)
        t = tl.where(counted, t - (tl.sum(t, 1) / channels)[:, None], 0.0)
    ss, tt, st = tl.sum(s * s, 1), tl.sum(t * t, 1), tl.sum(s * t, 1)
    a_s, a_t = scale_of(ss, channels, NORMALISE), scale_of(tt, channels, NORMALISE)
    value, pulled, along = ss, ss, ss
    if ELEMENTS != "none":
        d = a_s[:, None] * s - a_t[:, None] * t
        k = pull(d, beta, ELEMENTS)
        value = tl.sum(value_of(d, k, ELEMENTS), 1)
        if NORMALISE == "l2" or NORMALISE == "layer":
            pulled, along = tl.sum(k, 1), tl.sum(k * s, 1)
    loss, cosine, p, q, r, z = settle(
        ss, tt, st, value, pulled, along, a_s, a_t, of_loss * gradient_scale, channels,
        cosine_share, element_share, beta, COSINE, ELEMENTS, NORMALISE,
    )  # fmt: skip
    loss = tl.where(inside, of_loss * loss, 0.0)
    if row_losses is not None:
        tl.store(row_losses + row, loss, mask=there)
    tl.store(losses + program, tl.sum(loss, 0).to(tl.float64))
    cosine = tl.where(inside, of_cosine * cosine, 0.0)
    tl.store(similarities + program, tl.sum(cosine, 0).to(tl.float64))
    if grad is not None:
        found = gradient(
            s, t, a_s[:, None], a_t[:, None], p[:, None], q[:, None], r[:, None], z[:, None], beta,
            COSINE, ELEMENTS, NORMALISE,
        )  # fmt: skip
        if NORMALISE == "teacher":
            found *= tl.load(scale + index, mask=index < channels, other=0.0)[None, :]
        found = tl.where(inside[:, None], found, 0.0)
        at = tile_offsets(n, a, b, index, g_channel, g_n, g_a, g_b, ALONG_CHANNELS, UNIT)
        tl.store(grad + at, found.to(grad.dtype.element_ty), mask=there[:, None] & exists)


def fits(layout: Layout, channels: int) -> bool:
    """Whether a row is short enough to be held."""
    return bool(channels <= (LONGEST_ROW if layout.along_classes else LONGEST_DENSE))


def launch_held(
    layout: Layout, student: Tensor, teacher: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    """Each program's loss and cosine (float64); arguments as in ``arrange``."""
    item_size = min(student.element_size(), teacher.element_size())
    block = tile_of(layout, student.shape[1], item_size)
    launch = arrange(layout, block, student, teacher, *others)
    feature_held_kernel[(launch.programs,)](*launch.arguments, **launch.constants)
    return launch.losses, launch.similarities
