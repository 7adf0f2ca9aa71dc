"""The feature loss of rows that are too long for the registers: wide maps, very wide embeddings.

A program takes the rows' channels chunk by chunk, with a sum for each lane of a chunk, and once
more for each thing that needs the sums before it: the means of layer norm, the scales that
normalising divides by, the gradient. Its tiles are those of ``distill_loss/streamed.py``.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from isp_distill.kernels.distill_loss.held import rows_of_program, tile_offsets
from isp_distill.kernels.distill_loss.layout import Layout, all_registers
from isp_distill.kernels.distill_loss.streamed import tile_of
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
def _chunk(
    pointer, n, a, b, index, read, inside, mean, scale, centre, channels,
    stride_channel, stride_n, stride_a, stride_b,
    NORMALISE: tl.constexpr, ALONG_CHANNELS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """x' of a chunk of the channels, float32; 0 where there is none."""
    at = tile_offsets(
        n, a, b, index, stride_channel, stride_n, stride_a, stride_b, ALONG_CHANNELS, UNIT
    )
    exists = (index < channels)[None, :]
    counted = inside[:, None] & exists
    x = tile(pointer, at, read[:, None] & exists, counted, mean, scale, index, channels, NORMALISE)
    return tl.where(counted, x - centre[:, None], 0.0)


@triton.jit
def feature_streamed_kernel(
    student, teacher, grad, mean, scale, mask, weight, factors, row_losses, losses, similarities,
    s_channel, s_n, s_a, s_b, t_channel, t_n, t_a, t_b, g_channel, g_n, g_a, g_b,
    row_n, row_a, row_b, neighbours, others, size_a, rows_per_weight,
    cosine_share, element_share, beta, gradient_scale,
    COSINE: tl.constexpr, ELEMENTS: tl.constexpr, NORMALISE: tl.constexpr,
    ALONG_CHANNELS: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """``BLOCK_ROWS`` rows along the last row axis; arguments as of ``feature_held_kernel``."""
    program, channels, n, a, b, there = rows_of_program(
        neighbours, others, size_a, ALONG_CHANNELS, UNIT, BLOCK_ROWS
    )
    lane = tl.arange(0, BLOCK_CHANNELS)
    row, inside, of_loss, of_cosine = describe_rows(
        n, a, b, there, mask, weight, factors, row_n, row_a, row_b, rows_per_weight
    )
    read = inside if ALONG_CHANNELS else there
    empty = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.float32)
    m_s, m_t = of_loss * 0.0, of_loss * 0.0
    if NORMALISE == "layer":
        sum_s, sum_t = empty, empty
        for begin in range(0, channels, BLOCK_CHANNELS):
            sum_s += _chunk(
                student, n, a, b, begin + lane, read, inside, mean, scale, m_s, channels,
                s_channel, s_n, s_a, s_b, NORMALISE, ALONG_CHANNELS, UNIT,
            )  # fmt: skip
            sum_t += _chunk(
                teacher, n, a, b, begin + lane, read, inside, mean, scale, m_t, channels,
                t_channel, t_n, t_a, t_b, NORMALISE, ALONG_CHANNELS, UNIT,
            )  # fmt: skip
        m_s, m_t = tl.sum(sum_s, 1) / channels, tl.sum(sum_t, 1) / channels

    SCALED: tl.constexpr = NORMALISE == "l2" or NORMALISE == "layer"
    lanes_ss, lanes_tt, lanes_st, lanes_value = empty, empty, empty, empty
    for begin in range(0, channels, BLOCK_CHANNELS):
        s = _chunk(
            student, n, a, b, begin + lane, read, inside, mean, scale, m_s, channels,
            s_channel, s_n, s_a, s_b, NORMALISE, ALONG_CHANNELS, UNIT,
        )  # fmt: skip
        t = _chunk(
            teacher, n, a, b, begin + lane, read, inside, mean, scale, m_t, channels,
            t_channel, t_n, t_a, t_b, NORMALISE, ALONG_CHANNELS, UNIT,
        )  # fmt: skip
        lanes_ss, lanes_tt, lanes_st = lanes_ss + s * s, lanes_tt + t * t, lanes_st + s * t
        if ELEMENTS != "none" and not SCALED:
            lanes_value += value_of(s - t, pull(s - t, beta, ELEMENTS), ELEMENTS)
    ss, tt, st = tl.sum(lanes_ss, 1), tl.sum(lanes_tt, 1), tl.sum(lanes_st, 1)
    a_s, a_t = scale_of(ss, channels, NORMALISE), scale_of(tt, channels, NORMALISE)
    value, pulled, along = tl.sum(lanes_value, 1), ss, ss
    if ELEMENTS != "none" and SCALED:
        lanes_pull, lanes_along = empty, empty
        for begin in range(0, channels, BLOCK_CHANNELS):
            s = _chunk(
                student, n, a, b, begin + lane, read, inside, mean, scale, m_s, channels,
                s_channel, s_n, s_a, s_b, NORMALISE, ALONG_CHANNELS, UNIT,
            )  # fmt: skip
            t = _chunk(
                teacher, n, a, b, begin + lane, read, inside, mean, scale, m_t, channels,
                t_channel, t_n, t_a, t_b, NORMALISE, ALONG_CHANNELS, UNIT,
            )  # fmt: skip
            d = a_s[:, None] * s - a_t[:, None] * t
            k = pull(d, beta, ELEMENTS)
            lanes_value += value_of(d, k, ELEMENTS)
            lanes_pull, lanes_along = lanes_pull + k, lanes_along + k * s
        value = tl.sum(lanes_value, 1)
        pulled, along = tl.sum(lanes_pull, 1), tl.sum(lanes_along, 1)
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
        for begin in range(0, channels, BLOCK_CHANNELS):
            index = begin + lane
            s = _chunk(
                student, n, a, b, index, read, inside, mean, scale, m_s, channels,
                s_channel, s_n, s_a, s_b, NORMALISE, ALONG_CHANNELS, UNIT,
            )  # fmt: skip
            t = _chunk(
                teacher, n, a, b, index, read, inside, mean, scale, m_t, channels,
                t_channel, t_n, t_a, t_b, NORMALISE, ALONG_CHANNELS, UNIT,
            )  # fmt: skip
            found = gradient(
                s, t, a_s[:, None], a_t[:, None], p[:, None], q[:, None], r[:, None], z[:, None],
                beta, COSINE, ELEMENTS, NORMALISE,
            )  # fmt: skip
            if NORMALISE == "teacher":
                found *= tl.load(scale + index, mask=index < channels, other=0.0)[None, :]
            found = tl.where(inside[:, None], found, 0.0)
            at = tile_offsets(n, a, b, index, g_channel, g_n, g_a, g_b, ALONG_CHANNELS, UNIT)
            written = there[:, None] & (index < channels)[None, :]
            tl.store(grad + at, found.to(grad.dtype.element_ty), mask=written)


def launch_streamed(
    layout: Layout, student: Tensor, teacher: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    """Each program's loss and cosine (float64); arguments as in ``arrange``."""
    item_size = min(student.element_size(), teacher.element_size())
    block = tile_of(layout, student.shape[1], item_size)
    launch = arrange(layout, block, student, teacher, *others)
    registers = all_registers(launch.constants["num_warps"])
    feature_streamed_kernel[(launch.programs,)](
        *launch.arguments, **launch.constants, maxnreg=registers
    )
    return launch.losses, launch.similarities
