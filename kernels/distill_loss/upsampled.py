"""The distillation loss at full resolution of low-resolution logits, and its gradient down there.

Two kernels, neither of which writes anything of the size of full-resolution logits:

1. ``pixels_kernel``: a thread owns a full-resolution pixel and walks along the classes, each logit
   interpolated from the four around it, which neighbouring threads share in the first-level cache.
   It leaves the loss and, where a gradient is wanted, the few numbers a pixel that ``gradient``
   needs beside the logits (``FLOATS``: 4 to 9 of them, whatever the number of classes).
2. ``cells_kernel``: a program owns low-resolution cells, for some classes, and visits every pixel
   that a cell contributes to. It interpolates the logits again, takes the gradient at the pixel
   from its numbers, and adds it up with the cell's interpolation weight.

The second is a gather: a pixel is looked at by the (up to) four cells that it came from, at four
times the exponentials. The scatter that would need them once adds to four cells from many
programs at a time, by atomics, in an order that changes from run to run; this one is reproducible,
and its sums stay in registers. A pixel's numbers lie together.

Output pixel i lies at input coordinate ``(slope i + offset) / divisor``, cut off below 0, in
integers: exactly where ``torch.nn.functional.interpolate`` has it, in either ``align_corners``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from isp_distill.kernels.distill_loss.held import describe_rows
from isp_distill.kernels.distill_loss.math import (
    INFINITY,
    NO_LOGIT,
    compare,
    gradient,
    gradient_label,
    observe,
    observe_label,
    settle,
    settle_label,
)
from torch import Tensor

from isp_distill.errors import BackendError

#: Pixels of a program; cells and classes of a program.
BLOCK_PIXELS, BLOCK_CELLS, BLOCK_CLASSES = 128, 32, 16
LOWEST = tl.constexpr(-1e38)


@triton.jit
def _source(i, slope, offset, divisor, size):
    """Where output i comes from: ``in[first] (1 - share) + in[second] share``."""
    numerator = tl.maximum(i * slope + offset, 0)
    first = tl.minimum(numerator // divisor, size - 1)
    share = tl.where(first + 1 < size, (numerator - first * divisor) / divisor, 0.0)
    return first, tl.minimum(first + 1, size - 1), share


@triton.jit
def _cell(pointer):
    """A logit, float32; a number where it is -inf, and NaN where it is NaN."""
    x = tl.load(pointer).to(tl.float32)
    return tl.where(x < LOWEST, LOWEST, x)


@triton.jit
def _interpolated(pointer, at00, at01, at10, at11, share_y, share_x):
    """A bilinear mean of logits, float32. A class that the teacher rules out in one of the four is
    ruled out, unless its weight is 0: -inf stands for a number here."""
    x00 = _cell(pointer + at00)
    x01 = _cell(pointer + at01)
    x10 = _cell(pointer + at10)
    x11 = _cell(pointer + at11)
    upper = x00 * (1 - share_x) + x01 * share_x
    lower = x10 * (1 - share_x) + x11 * share_x
    x = upper * (1 - share_y) + lower * share_y
    return tl.where(x < NO_LOGIT, -INFINITY, x)


@triton.jit
def _four(start, y0, y1, x0, x1, stride_y, stride_x):
    """Offsets of the four logits around a pixel."""
    upper, lower = start + y0.to(tl.int64) * stride_y, start + y1.to(tl.int64) * stride_y
    left, right = x0.to(tl.int64) * stride_x, x1.to(tl.int64) * stride_x
    return upper + left, upper + right, lower + left, lower + right


@triton.jit
def _of_class(pointer, at, share_y, share_x, index, stride_class):
    """The interpolated logits of a class, ``[pixels, 1]``: one lane a pixel."""
    step = index * stride_class
    x = _interpolated(
        pointer, at[0] + step, at[1] + step, at[2] + step, at[3] + step, share_y, share_x
    )
    return x[:, None]


@triton.jit
def pixels_kernel(
    student, teacher, numbers, labels, mask, weight, factors, row_losses, losses, agreements,
    s_class, s_n, s_y, s_x, t_class, t_n, t_y, t_x,
    s_height, s_width, t_height, t_width, classes, height, width,
    s_slope_y, s_offset_y, s_divisor_y, s_slope_x, s_offset_x, s_divisor_x,
    t_slope_y, t_offset_y, t_divisor_y, t_slope_x, t_offset_x, t_divisor_x,
    k, T, parameter0, parameter1, ignore_index, smoothing, gradient_scale,
    OBJECTIVE: tl.constexpr, CROSS_ENTROPY: tl.constexpr, SMOOTHED: tl.constexpr,
    FLOATS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Loss, agreement and the gradient's numbers of ``PIXELS`` pixels of one sample."""
    blocks = tl.cdiv(height * width, PIXELS)
    program = tl.program_id(0)
    n = program // blocks
    pixel = (program % blocks) * PIXELS + tl.arange(0, PIXELS)
    there = pixel < height * width
    row, inside, label, weight_objective, weight_label = describe_rows(
        n, n, pixel, there, labels, mask, weight, factors, height * width, 0, 1,
        height * width, ignore_index,
    )  # fmt: skip
    # Pixels beyond the last look at it and count nothing.
    y, x = tl.minimum(pixel // width, height - 1), pixel % width
    y0, y1, s_share_y = _source(y, s_slope_y, s_offset_y, s_divisor_y, s_height)
    x0, x1, s_share_x = _source(x, s_slope_x, s_offset_x, s_divisor_x, s_width)
    s_at = _four(n.to(tl.int64) * s_n, y0, y1, x0, x1, s_y, s_x)
    y0, y1, t_share_y = _source(y, t_slope_y, t_offset_y, t_divisor_y, t_height)
    x0, x1, t_share_x = _source(x, t_slope_x, t_offset_x, t_divisor_x, t_width)
    t_at = _four(n.to(tl.int64) * t_n, y0, y1, x0, x1, t_y, t_x)

    # As in distill_streamed, but that a lane sees every class of its pixel: nothing to combine.
    FIRST: tl.constexpr = "none" if OBJECTIVE == "dkd" else OBJECTIVE
    empty = tl.zeros([PIXELS, 1], tl.float32)
    choice_s, choice_t = tl.zeros([PIXELS, 1], tl.int32), tl.zeros([PIXELS, 1], tl.int32)
    top_s, top_t, sum_s, sum_t, mixed = empty + NO_LOGIT, empty + NO_LOGIT, empty, empty, empty
    total, plain = empty, empty
    for index in range(0, classes):
        step = tl.zeros([PIXELS], tl.int64) + index
        s = _of_class(student, s_at, s_share_y, s_share_x, step, s_class)
        t = _of_class(teacher, t_at, t_share_y, t_share_x, step, t_class)
        if CROSS_ENTROPY:
            total, plain = observe_label(s, top_s, total, plain, empty + index, SMOOTHED)
        choice_s, choice_t = (
            tl.where(s > top_s, index, choice_s),
            tl.where(t > top_t, index, choice_t),
        )
        top_s, sum_s, top_t, sum_t, mixed = observe(
            s, t, top_s, sum_s, top_t, sum_t, mixed, k, parameter0, parameter1, FIRST
        )
    counts = inside[:, None]
    agreed = tl.sum(tl.sum((counts & (choice_s == choice_t)).to(tl.int64), 1), 0)

    best_s = top_s
    loss, weight_label = empty, weight_label[:, None]
    label_scale = weight_label
    if CROSS_ENTROPY:
        at = tl.minimum(tl.maximum(label, 0), classes - 1).to(tl.int64)
        logit = _of_class(student, s_at, s_share_y, s_share_x, at, s_class)
        loss = settle_label(
            total, plain, logit - best_s, weight_label, smoothing, classes, SMOOTHED
        )
        weight_label *= gradient_scale
        label_scale = weight_label / total

    target = label[:, None]
    logit_s, logit_t = empty, empty
    if OBJECTIVE == "dkd":
        target = tl.where(target >= 0, target, choice_t)
        at = tl.minimum(tl.max(target, 1), classes - 1).to(tl.int64)
        logit_s = _of_class(student, s_at, s_share_y, s_share_x, at, s_class)
        logit_t = _of_class(teacher, t_at, t_share_y, t_share_x, at, t_class)
        top_s, top_t, sum_s, sum_t, mixed = empty + NO_LOGIT, empty + NO_LOGIT, empty, empty, empty
        for index in range(0, classes):
            step = tl.zeros([PIXELS], tl.int64) + index
            s = _of_class(student, s_at, s_share_y, s_share_x, step, s_class)
            t = _of_class(teacher, t_at, t_share_y, t_share_x, step, t_class)
            s, t = tl.where(target == index, -INFINITY, s), tl.where(target == index, -INFINITY, t)
            top_s, sum_s, top_t, sum_t, mixed = observe(
                s, t, top_s, sum_s, top_t, sum_t, mixed, k, parameter0, parameter1, OBJECTIVE
            )
    first, second = empty, empty
    if OBJECTIVE == "jsd" or OBJECTIVE == "tvd":
        for index in range(0, classes):
            step = tl.zeros([PIXELS], tl.int64) + index
            s = _of_class(student, s_at, s_share_y, s_share_x, step, s_class)
            t = _of_class(teacher, t_at, t_share_y, t_share_x, step, t_class)
            terms = compare(s, t, top_s, top_t, sum_s, sum_t, k, parameter0, OBJECTIVE)
            first, second = first + terms[0], second + terms[1]
    a, b, c, d = empty, empty, empty, empty
    if OBJECTIVE != "none":
        value, a, b, c, d = settle(
            sum_s, sum_t, mixed, first, second, (logit_s - top_s) * k, (logit_t - top_t) * k,
            weight_objective[:, None], T, parameter0, parameter1, gradient_scale, OBJECTIVE,
        )  # fmt: skip
        loss += value
    loss = tl.where(counts, loss, 0.0)
    at = row[:, None]
    if row_losses is not None:
        tl.store(row_losses + at, loss, mask=there[:, None])
    tl.store(losses + program, tl.sum(tl.sum(loss, 1), 0).to(tl.float64))
    tl.store(agreements + program, agreed)

    if numbers is not None:
        own, written = numbers + row[:, None] * FLOATS, there[:, None]
        # A maximum of -inf marks a pixel that does not count.
        tl.store(own, tl.where(counts, top_t, -INFINITY), mask=written)
        tl.store(own + 1, top_s, mask=written)
        tl.store(own + 2, a, mask=written)
        tl.store(own + 3, b, mask=written)
        if FLOATS % 3 == 0:
            tl.store(own + 4, c, mask=written)
            tl.store(own + 5, target.to(tl.float32) if OBJECTIVE == "dkd" else d, mask=written)
        if CROSS_ENTROPY:
            tl.store(own + FLOATS - 3, best_s, mask=written)
            tl.store(own + FLOATS - 2, label_scale, mask=written)
            tl.store(own + FLOATS - 1, weight_label, mask=written)


@triton.jit
def _first_pixel(cell, slope, offset, divisor, size):
    """The first output that comes from a cell or a later one."""
    numerator = tl.maximum((cell - 1) * divisor - offset, 0)
    return tl.minimum((numerator + slope - 1) // slope, size)


@triton.jit
def _share_of(cell, first, share):
    """What a cell contributes to an output."""
    return tl.where(first == cell, 1 - share, tl.where(first + 1 == cell, share, 0.0))


@triton.jit
def cells_kernel(
    student, teacher, numbers, grad, labels,
    s_class, s_n, s_y, s_x, t_class, t_n, t_y, t_x, g_class, g_n, g_y, g_x,
    s_height, s_width, t_height, t_width, classes, height, width, reach_x,
    s_slope_y, s_offset_y, s_divisor_y, s_slope_x, s_offset_x, s_divisor_x,
    t_slope_y, t_offset_y, t_divisor_y, t_slope_x, t_offset_x, t_divisor_x,
    k, parameter0, parameter1, smoothing,
    OBJECTIVE: tl.constexpr, CROSS_ENTROPY: tl.constexpr, SMOOTHED: tl.constexpr,
    FLOATS: tl.constexpr, CELLS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """The gradient of ``CELLS`` neighbours in a row of low-resolution logits, of ``CLASSES``.

    ``reach_x`` is the largest number of pixels in a row that one cell contributes to.
    """
    class_blocks, cell_blocks = tl.cdiv(classes, CLASSES), tl.cdiv(s_width, CELLS)
    program = tl.program_id(0)
    index = (program % class_blocks) * CLASSES + tl.arange(0, CLASSES)
    program = program // class_blocks
    cell_x = (program % cell_blocks) * CELLS + tl.arange(0, CELLS)
    cell_y = (program // cell_blocks) % s_height
    n = program // cell_blocks // s_height
    there = (index < classes)[:, None] & (cell_x < s_width)[None, :]
    of_class = tl.minimum(index, classes - 1)[:, None].to(tl.int64)
    s_start = n.to(tl.int64) * s_n + of_class * s_class
    t_start = n.to(tl.int64) * t_n + of_class * t_class

    begin_y = _first_pixel(cell_y, s_slope_y, s_offset_y, s_divisor_y, height)
    end_y = _first_pixel(cell_y + 2, s_slope_y, s_offset_y, s_divisor_y, height)
    end_y = tl.where(cell_y == s_height - 1, height, end_y)
    begin_x = _first_pixel(cell_x, s_slope_x, s_offset_x, s_divisor_x, width)
    end_x = _first_pixel(cell_x + 2, s_slope_x, s_offset_x, s_divisor_x, width)
    end_x = tl.where(cell_x == s_width - 1, width, end_x)

    result = tl.zeros([CLASSES, CELLS], tl.float32)
    for y in range(begin_y, end_y):
        s_y0, s_y1, s_share_y = _source(y, s_slope_y, s_offset_y, s_divisor_y, s_height)
        t_y0, t_y1, t_share_y = _source(y, t_slope_y, t_offset_y, t_divisor_y, t_height)
        weight_y = _share_of(cell_y, s_y0, s_share_y)
        for reach in range(0, reach_x):
            reached = begin_x + reach < end_x
            x = tl.minimum(begin_x + reach, width - 1)
            s_x0, s_x1, s_share_x = _source(x, s_slope_x, s_offset_x, s_divisor_x, s_width)
            t_x0, t_x1, t_share_x = _source(x, t_slope_x, t_offset_x, t_divisor_x, t_width)
            weight = tl.where(reached, weight_y * _share_of(cell_x, s_x0, s_share_x), 0.0)
            row = (n.to(tl.int64) * height + y) * width + x
            own = numbers + row * FLOATS
            top_t, top_s, a, b = tl.load(own), tl.load(own + 1), tl.load(own + 2), tl.load(own + 3)
            c, d = a, b
            if FLOATS % 3 == 0:
                c, d = tl.load(own + 4), tl.load(own + 5)
            s00, s01, s10, s11 = _four(s_start, s_y0, s_y1, s_x0[None, :], s_x1[None, :], s_y, s_x)
            t00, t01, t10, t11 = _four(t_start, t_y0, t_y1, t_x0[None, :], t_x1[None, :], t_y, t_x)
            s = _interpolated(student, s00, s01, s10, s11, s_share_y, s_share_x[None, :])
            t = _interpolated(teacher, t00, t01, t10, t11, t_share_y, t_share_x[None, :])
            at_target = index[:, None] == d[None, :].to(tl.int32)
            found = gradient(
                s, t, at_target, top_s[None, :], top_t[None, :], a[None, :], b[None, :],
                c[None, :], d[None, :], k, parameter0, parameter1, OBJECTIVE,
            )  # fmt: skip
            if CROSS_ENTROPY:
                best_s, label_scale = tl.load(own + FLOATS - 3), tl.load(own + FLOATS - 2)
                weight_label = tl.load(own + FLOATS - 1)
                # A label of no class has weight 0.
                at_label = index[:, None] == tl.load(labels + row)[None, :]
                found += gradient_label(
                    s, at_label, best_s[None, :], label_scale[None, :], weight_label[None, :],
                    smoothing, classes, SMOOTHED,
                )  # fmt: skip
            counts = (weight > 0) & (top_t > -INFINITY)
            result += tl.where(counts[None, :], weight[None, :] * found, 0.0)
    at = n.to(tl.int64) * g_n + cell_y.to(tl.int64) * g_y
    at = at + of_class * g_class + cell_x[None, :].to(tl.int64) * g_x
    tl.store(grad + at, result.to(grad.dtype.element_ty), mask=there)


def axis(size_in: int, size_out: int, align_corners: bool) -> tuple[int, int, int]:
    """Slope, offset and divisor of where an axis's outputs come from.

    Raises:
        BackendError: for an axis too long for their products in 32 bits.
    """
    if align_corners:
        slope, offset, divisor = size_in - 1, 0, size_out - 1
    else:
        slope, offset, divisor = 2 * size_in, size_in - size_out, 2 * size_out
    if slope == 0 or divisor == 0:  # every output is the first input: none gets as far as a second
        slope, offset, divisor = 1, 0, size_out + 1
    common = math.gcd(slope, offset, divisor)
    slope, offset, divisor = slope // common, offset // common, divisor // common
    if max(slope * size_out - offset, divisor * (size_in + 2)) + abs(offset) >= 2**31:
        raise BackendError(f"triton: interpolating {size_in} to {size_out} overflows 32 bits")
    return slope, offset, divisor


def floats_of_pixel(objective: str, cross_entropy: bool) -> int:
    """What a pixel leaves for the gradient: maxima, a, b; c and d of some objectives, of all that
    make it a multiple of 3; three numbers of cross entropy."""
    both = objective in ("dkd", "jsd", "tvd")
    return (6 if both else 4) + (3 if cross_entropy else 0)


def launch_upsampled(
    student: Tensor,
    teacher: Tensor,
    size: tuple[int, int],
    align_corners: bool,
    gradient: Tensor | None,
    row_tensors: tuple[Tensor | None, Tensor | None, Tensor | None],
    factors: Tensor,
    row_losses: Tensor | None,
    numbers: tuple[Any, ...],
    objective: str,
    cross_entropy: bool,
) -> tuple[Tensor, Tensor]:
    """Each program's loss (float64) and agreements of logits ``[N, C, h, w]``; fills ``gradient``.

    ``row_tensors`` are labels, mask and weight at full resolution, ``numbers`` as in
    ``pixels_kernel`` from ``k`` on.
    """
    (batch, classes, s_height, s_width), (height, width) = student.shape, size
    programs = batch * triton.cdiv(height * width, BLOCK_PIXELS)
    losses = factors.new_empty(programs)
    agreements = factors.new_empty(programs, dtype=torch.int64)
    floats, of_pixels = floats_of_pixel(objective, cross_entropy), None
    if gradient is not None:
        of_pixels = student.new_empty((batch, height, width, floats), dtype=torch.float32)
    strides = [[t.stride(k) for k in (1, 0, 2, 3)] for t in (student, teacher)]
    sizes = (*student.shape[2:], *teacher.shape[2:], classes, height, width)
    axes = [
        number
        for logits in (student, teacher)
        for k in (0, 1)
        for number in axis(logits.shape[2 + k], size[k], align_corners)
    ]
    constants = {
        "OBJECTIVE": objective,
        "CROSS_ENTROPY": cross_entropy,
        "SMOOTHED": cross_entropy and numbers[5] != 0,
        "FLOATS": floats,
    }
    pixels_kernel[(programs,)](
        student, teacher, of_pixels, *row_tensors, factors, row_losses, losses, agreements,
        *strides[0], *strides[1], *sizes, *axes, *numbers,
        PIXELS=BLOCK_PIXELS, num_warps=BLOCK_PIXELS // 32, **constants,
    )  # fmt: skip
    if gradient is not None:
        slope, _, divisor = axes[3:6]
        reach = min(width, -(-2 * divisor // slope) + 1)
        of_gradient = [gradient.stride(k) for k in (1, 0, 2, 3)]
        grid = triton.cdiv(classes, BLOCK_CLASSES) * triton.cdiv(s_width, BLOCK_CELLS)
        cells_kernel[(grid * s_height * batch,)](
            student, teacher, of_pixels, gradient, row_tensors[0],
            *strides[0], *strides[1], *of_gradient, *sizes, reach, *axes,
            numbers[0], numbers[2], numbers[3], numbers[5],
            CELLS=BLOCK_CELLS, CLASSES=BLOCK_CLASSES, num_warps=4, maxnreg=128,
            **constants,
        )  # fmt: skip
    return losses, agreements
