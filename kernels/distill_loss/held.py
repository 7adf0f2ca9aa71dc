"""The distillation loss where the class axis of a row fits the registers: read once, written once.

A program takes a tile ``[rows, classes]`` with all classes (filled up to a power of two) of student
and teacher, one load each, reduces it to the rows' losses and writes the gradient from the values
it still holds. So the memory traffic is the least there can be, whatever the objective: two reads
and one write of the logits. Two shapes of tile, one for either layout:

- rows, the classes neighbours in memory (``[N, C]``, channels_last): a row, or as many short rows
  as fill the program; the threads of a warp lie along the classes;
- dense, the pixels neighbours (``[N, C, H, W]``): 16 pixels or more, up to the 128 bytes of a line
  of the cache, of every class; the threads of a warp lie along the pixels, the warps along the
  classes. Looping over the classes instead, a pixel a thread, would need the logits a second time
  when the level-2 cache has long lost them: all pixels in flight times 150 classes do not fit.

Where the axis is longer, see ``distill_streamed``. No atomics: a program leaves its part of the sum
of losses and of the count of agreements, and they are added up in their order.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from isp_distill.kernels.distill_loss.layout import Layout, arrange, power_of_two
from isp_distill.kernels.distill_loss.math import (
    INFINITY,
    LOG2E,
    choose,
    combine,
    combine_label,
    compare,
    gradient,
    gradient_label,
    settle,
    settle_label,
)
from torch import Tensor

#: The longest axes that are held: classes of a row, and of the pixels of a dense map.
LONGEST_ROW, LONGEST_DENSE = 4096, 256


@triton.jit
def describe_rows(
    n, a, b, there, labels, mask, weight, factors, row_stride_n, row_stride_a, row_stride_b,
    rows_per_sample, ignore_index,
):  # fmt: skip
    """Of each row: its number, whether it counts, its label (-1: none) and its two weights."""
    row = n.to(tl.int64) * row_stride_n + a.to(tl.int64) * row_stride_a
    row = row + b.to(tl.int64) * row_stride_b
    inside = there
    if mask is not None:
        inside = there & (tl.load(mask + row, mask=there, other=0) != 0)
    label = tl.full(row.shape, -1, tl.int32)
    if labels is not None:
        found = tl.load(labels + row, mask=inside, other=ignore_index)
        label = tl.where(inside & (found != ignore_index), found, -1).to(tl.int32)
    of_objective = tl.load(factors).to(tl.float32)
    of_label = tl.load(factors + 1).to(tl.float32)
    scale = tl.full(row.shape, 1.0, tl.float32)
    if weight is not None:
        scale = tl.load(weight + row // rows_per_sample, mask=inside, other=0.0)
    weight_objective = tl.where(inside, of_objective * scale, 0.0)
    weight_label = tl.where(label >= 0, of_label * scale, 0.0)
    return row, inside, label, weight_objective, weight_label


@triton.jit
def rows_of_program(
    neighbours, others, size_a,
    ALONG: tl.constexpr, UNIT: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """The program's number, the width of a row, the row's places n, a and b, and which are there.

    ``ALONG``: neighbours in memory are those of a row. ``neighbours`` is divided by UNIT.
    """
    if ALONG:
        width, size_b = neighbours * UNIT, others
    else:
        width, size_b = others, neighbours * UNIT
    blocks = tl.cdiv(size_b, BLOCK_ROWS)
    program = tl.program_id(0)
    outer = program // blocks
    b = (program % blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return program, width, outer // size_a, outer % size_a, b, b < size_b


@triton.jit
def tile_offsets(
    n, a, b, index, stride_class, stride_n, stride_a, stride_b,
    ALONG_CLASSES: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Where a tile lies in memory. All strides but the neighbours' are multiples of UNIT: they come
    divided by it, so that the compiler sees the factor (see ``Layout.unit``)."""
    start = (n.to(tl.int64) * stride_n + a.to(tl.int64) * stride_a) * UNIT
    if ALONG_CLASSES:
        rows, classes = b.to(tl.int64) * stride_b * UNIT, index.to(tl.int64) * stride_class
    else:
        rows, classes = b.to(tl.int64) * stride_b, index.to(tl.int64) * stride_class * UNIT
    return start + rows[:, None] + classes[None, :]


@triton.jit
def held_kernel(
    student, teacher, grad, labels, mask, weight, factors, row_losses, losses, agreements,
    s_class, s_n, s_a, s_b, t_class, t_n, t_a, t_b, g_class, g_n, g_a, g_b,
    row_n, row_a, row_b, neighbours, others, size_a, rows_per_sample,
    k, T, parameter0, parameter1, ignore_index, smoothing, gradient_scale,
    OBJECTIVE: tl.constexpr, CROSS_ENTROPY: tl.constexpr, SMOOTHED: tl.constexpr,
    ALONG_CLASSES: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr,
):  # fmt: skip
    """One tile: ``BLOCK_ROWS`` rows along the last row axis, every class.

    ``neighbours`` is the number of neighbours in memory divided by UNIT, ``others`` the number of
    classes or of rows along the last axis, whichever is left.
    """
    program, classes, n, a, b, there = rows_of_program(
        neighbours, others, size_a, ALONG_CLASSES, UNIT, BLOCK_ROWS
    )
    index = tl.arange(0, BLOCK_CLASSES)
    exists = (index < classes)[None, :]
    row, inside, label, weight_objective, weight_label = describe_rows(
        n, a, b, there, labels, mask, weight, factors, row_n, row_a, row_b,
        rows_per_sample, ignore_index,
    )  # fmt: skip

    # Rows outside the mask are left out where a row is read by itself. Among pixels that are read
    # together a mask of the load would break it into single values: they are replaced afterwards.
    read = inside if ALONG_CLASSES else there
    read = read[:, None] & exists
    at = tile_offsets(n, a, b, index, s_class, s_n, s_a, s_b, ALONG_CLASSES, UNIT)
    s = tl.load(student + at, mask=read, other=0.0).to(tl.float32)
    at = tile_offsets(n, a, b, index, t_class, t_n, t_a, t_b, ALONG_CLASSES, UNIT)
    t = tl.load(teacher + at, mask=read, other=0.0).to(tl.float32)
    s = tl.where(exists, tl.where(inside[:, None], s, 0.0), -INFINITY)
    t = tl.where(exists, tl.where(inside[:, None], t, 0.0), -INFINITY)

    best_s, choice_s = choose(s, index[None, :])
    best_t, choice_t = choose(t, index[None, :])
    agreed = tl.sum((inside & (choice_s == choice_t)).to(tl.int64), 0)

    loss = weight_objective * 0.0
    at_label = index[None, :] == label[:, None]
    total = weight_label
    if CROSS_ENTROPY:
        total, plain = combine_label(s, s, s, 0, best_s, SMOOTHED, True)
        label_logit = tl.sum(tl.where(at_label, s - best_s[:, None], 0.0), 1)
        loss += settle_label(total, plain, label_logit, weight_label, smoothing, classes, SMOOTHED)
        weight_label *= gradient_scale
        total = weight_label / total

    # dkd compares the target class and the others apart: it leaves the tile.
    top_s, top_t = best_s, best_t
    logit_s, logit_t = weight_objective, weight_objective
    at_target = at_label
    if OBJECTIVE == "dkd":
        target = tl.where(label >= 0, label, choice_t)
        at_target = index[None, :] == target[:, None]
        logit_s = tl.sum(tl.where(at_target, s, 0.0), 1)
        logit_t = tl.sum(tl.where(at_target, t, 0.0), 1)
        s, t = tl.where(at_target, -INFINITY, s), tl.where(at_target, -INFINITY, t)
        top_s, top_t = tl.max(s, 1), tl.max(t, 1)

    a_, b_, c_, d_ = weight_objective, weight_objective, weight_objective, weight_objective
    if OBJECTIVE != "none":
        sum_s, sum_t, mixed = combine(
            s, s, t, s, s, top_s, top_t, k, parameter0, parameter1, OBJECTIVE, True
        )
        first, second = mixed, mixed
        if OBJECTIVE == "jsd" or OBJECTIVE == "tvd":
            terms = compare(
                s, t, top_s[:, None], top_t[:, None], sum_s[:, None], sum_t[:, None],
                k, parameter0, OBJECTIVE,
            )  # fmt: skip
            first, second = tl.sum(terms[0], 1), tl.sum(terms[1], 1)
        value, a_, b_, c_, d_ = settle(
            sum_s, sum_t, mixed, first, second, (logit_s - top_s) * k, (logit_t - top_t) * k,
            weight_objective, T, parameter0, parameter1, gradient_scale, OBJECTIVE,
        )  # fmt: skip
        loss += value
    loss = tl.where(inside, loss, 0.0)
    if row_losses is not None:
        tl.store(row_losses + row, loss, mask=there)
    tl.store(losses + program, tl.sum(loss, 0).to(tl.float64))
    tl.store(agreements + program, agreed)

    if grad is not None:
        # The gradient may take the student's place: every thread is to have read its logits.
        tl.debug_barrier()
        if OBJECTIVE == "dkd":
            # Only the target has left; where it is no label, cross entropy weighs nothing. Asking
            # the tile spares the registers of two classes a row.
            at_target = s == -INFINITY
            at_label = at_target
            # The same number by another way: the compiler would keep the exponentials of the sums
            # for the gradient, more than there are registers for.
            k = LOG2E / T
        found = gradient(
            s, t, at_target, top_s[:, None], top_t[:, None], a_[:, None], b_[:, None], c_[:, None],
            d_[:, None], k, parameter0, parameter1, OBJECTIVE,
        )  # fmt: skip
        if CROSS_ENTROPY:
            if OBJECTIVE == "dkd":
                s = tl.where(at_target, logit_s[:, None], s)
                best_s = tl.maximum(top_s, logit_s)
            found += gradient_label(
                s, at_label, best_s[:, None], total[:, None], weight_label[:, None],
                smoothing, classes, SMOOTHED,
            )  # fmt: skip
        # Rows that do not count hold zeros, and their coefficients are 0.
        at = tile_offsets(n, a, b, index, g_class, g_n, g_a, g_b, ALONG_CLASSES, UNIT)
        tl.store(grad + at, found.to(grad.dtype.element_ty), mask=there[:, None] & exists)


def tile_of(layout: Layout, classes: int, item_size: int) -> tuple[int, int, int]:
    """Rows and classes of a tile, and warps, for logits of ``item_size`` bytes (the smaller)."""
    columns = power_of_two(classes)
    if layout.along_classes:
        # Eight values a thread: one load of 16 bytes of bfloat16. Short rows share a program.
        rows = max(1, 1024 // columns)
        return rows, columns, min(16, max(2, rows * columns // (32 * 8)))
    # Sixteen values a thread and at most eight warps: each thread keeps several rows' numbers too.
    # At least 1024 values, or threads would hold copies of each other's.
    rows = max(min(128 // item_size, max(16, 4096 // columns)), 1024 // columns)
    return rows, columns, max(2, rows * columns // (32 * 16))


def fits(layout: Layout, classes: int, item_size: int, objective: str, cross_entropy: bool) -> bool:
    """Whether the class axis is short enough to be held."""
    if layout.along_classes:
        return classes <= LONGEST_ROW
    # dkd with labels keeps the most numbers a row, and a thread has eight rows of 16-bit logits.
    crowded = objective == "dkd" and cross_entropy and item_size < 4
    return classes <= (LONGEST_DENSE // 2 if crowded else LONGEST_DENSE)


def launch_held(
    layout: Layout,
    student: Tensor,
    teacher: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor]:
    """Each program's loss (float64) and agreements; arguments as in ``arrange``."""
    item_size = min(student.element_size(), teacher.element_size())
    tile = tile_of(layout, student.shape[1], item_size)
    launch = arrange(layout, tile, student, teacher, *others)
    held_kernel[(launch.programs,)](*launch.arguments, **launch.constants)
    return launch.losses, launch.agreements
