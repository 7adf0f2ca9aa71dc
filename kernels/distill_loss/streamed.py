"""The distillation loss where the class axis is too long to be held: chunks, two or three passes.

A program owns a few rows and walks along their classes in chunks of ``BLOCK_CLASSES``. In the first
pass each element of the tile keeps running sums of the classes that it sees (``observe``), and only
at the end are they exchanged and combined, so the loop has no barrier. A last pass reads the logits
again, from the cache where they fit it, and writes the gradient. jsd and tvd need a pass between
the two, over both normalised distributions; dkd one before, for it must know the teacher's choice,
its target where a row has no label, before it can leave that class out of the sums. A single logit,
such as the label's, is loaded by itself.

Rows (classes neighbours): one row a program, a chunk of 2048, so that 100,000 classes have a whole
multiprocessor's loads in flight; dense (pixels neighbours): 128 bytes of pixels by 32 classes.

cwd is this kernel too: its rows are channels and its classes pixels, and some of these may be
outside the mask (``class_mask``).
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from isp_distill.kernels.distill_loss.held import describe_rows, rows_of_program, tile_offsets
from isp_distill.kernels.distill_loss.layout import Layout, all_registers, arrange, power_of_two
from isp_distill.kernels.distill_loss.math import (
    INFINITY,
    NO_LOGIT,
    choose,
    combine,
    combine_label,
    compare,
    gradient,
    gradient_label,
    observe,
    observe_label,
    settle,
    settle_label,
)
from torch import Tensor

#: Classes of a chunk: of rows, and of the pixels of dense maps.
ROW_CHUNK, DENSE_CHUNK = 2048, 32


@triton.jit
def _chunk(
    pointer, class_mask, sample, n, a, b, index, read, inside, classes,
    stride_class, stride_n, stride_a, stride_b,
    ALONG_CLASSES: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """The logits of a chunk, float32; -inf where there is no class, 0 in rows that do not count."""
    at = tile_offsets(
        n, a, b, index, stride_class, stride_n, stride_a, stride_b, ALONG_CLASSES, UNIT
    )
    exists = (index < classes)[None, :]
    x = tl.load(pointer + at, mask=read[:, None] & exists, other=0.0).to(tl.float32)
    x = tl.where(inside[:, None], x, 0.0)
    if class_mask is not None:
        of_class = class_mask + sample[:, None] * classes + index[None, :]
        exists = exists & (tl.load(of_class, mask=read[:, None] & exists, other=0) != 0)
    return tl.where(exists, x, -INFINITY)


@triton.jit
def _logit(
    pointer, n, a, b, index, read, classes, stride_class, stride_n, stride_a, stride_b,
    ALONG_CLASSES: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """The logit of one class of each row, float32; the class is brought into its range."""
    index = tl.minimum(tl.maximum(index, 0), classes - 1).to(tl.int64)
    at = (n.to(tl.int64) * stride_n + a.to(tl.int64) * stride_a) * UNIT
    if ALONG_CLASSES:
        at = at + b.to(tl.int64) * stride_b * UNIT + index * stride_class
    else:
        at = at + b.to(tl.int64) * stride_b + index * stride_class * UNIT
    return tl.load(pointer + at, mask=read, other=0.0).to(tl.float32)


@triton.jit
def streamed_kernel(
    student, teacher, grad, labels, mask, weight, class_mask, factors, row_losses, losses,
    agreements, s_class, s_n, s_a, s_b, t_class, t_n, t_a, t_b, g_class, g_n, g_a, g_b,
    row_n, row_a, row_b, neighbours, others, size_a, rows_per_sample,
    k, T, parameter0, parameter1, ignore_index, smoothing, gradient_scale,
    OBJECTIVE: tl.constexpr, CROSS_ENTROPY: tl.constexpr, SMOOTHED: tl.constexpr,
    ALONG_CLASSES: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_CLASSES: tl.constexpr,
):  # fmt: skip
    """``BLOCK_ROWS`` rows along the last row axis; arguments as ``held_kernel`` has them."""
    program, classes, n, a, b, there = rows_of_program(
        neighbours, others, size_a, ALONG_CLASSES, UNIT, BLOCK_ROWS
    )
    lane = tl.arange(0, BLOCK_CLASSES)
    row, inside, label, weight_objective, weight_label = describe_rows(
        n, a, b, there, labels, mask, weight, factors, row_n, row_a, row_b,
        rows_per_sample, ignore_index,
    )  # fmt: skip
    sample = row // rows_per_sample
    read = inside if ALONG_CLASSES else there

    # What each lane has seen so far. dkd's first pass is only for the maxima and cross entropy.
    FIRST: tl.constexpr = "none" if OBJECTIVE == "dkd" else OBJECTIVE
    empty = tl.zeros([BLOCK_ROWS, BLOCK_CLASSES], tl.float32)
    no_index = tl.zeros([BLOCK_ROWS, BLOCK_CLASSES], tl.int32)
    top_s, top_t, arg_s, arg_t = empty + NO_LOGIT, empty + NO_LOGIT, no_index, no_index
    sum_s, sum_t, mixed, total, plain = empty, empty, empty, empty, empty
    for begin in range(0, classes, BLOCK_CLASSES):
        index = begin + lane
        s = _chunk(
            student, class_mask, sample, n, a, b, index, read, inside, classes,
            s_class, s_n, s_a, s_b, ALONG_CLASSES, UNIT,
        )  # fmt: skip
        t = _chunk(
            teacher, class_mask, sample, n, a, b, index, read, inside, classes,
            t_class, t_n, t_a, t_b, ALONG_CLASSES, UNIT,
        )  # fmt: skip
        if CROSS_ENTROPY:
            seen = empty + begin // BLOCK_CLASSES
            total, plain = observe_label(s, top_s, total, plain, seen, SMOOTHED)
        arg_s = tl.where(s > top_s, index[None, :], arg_s)
        arg_t = tl.where(t > top_t, index[None, :], arg_t)
        top_s, sum_s, top_t, sum_t, mixed = observe(
            s, t, top_s, sum_s, top_t, sum_t, mixed, k, parameter0, parameter1, FIRST
        )
    best_s, choice_s = choose(top_s, arg_s)
    best_t, choice_t = choose(top_t, arg_t)
    agreed = tl.sum((inside & (choice_s == choice_t)).to(tl.int64), 0)

    loss = weight_objective * 0.0
    row_total = weight_label
    if CROSS_ENTROPY:
        # The classes that each lane saw.
        seen = ((classes - lane + BLOCK_CLASSES - 1) // BLOCK_CLASSES).to(tl.float32)[None, :]
        row_total, row_plain = combine_label(top_s, total, plain, seen, best_s, SMOOTHED, False)
        label_logit = _logit(
            student, n, a, b, label, inside, classes, s_class, s_n, s_a, s_b, ALONG_CLASSES, UNIT
        )
        loss += settle_label(
            row_total, row_plain, label_logit - best_s, weight_label, smoothing, classes, SMOOTHED
        )
        weight_label *= gradient_scale
        row_total = weight_label / row_total

    # dkd compares the target class and the others apart: a pass over the others.
    row_top_s, row_top_t = best_s, best_t
    target, at_target = label, no_index == 1
    logit_s, logit_t = weight_objective, weight_objective
    if OBJECTIVE == "dkd":
        target = tl.where(label >= 0, label, choice_t)
        logit_s = _logit(
            student, n, a, b, target, inside, classes, s_class, s_n, s_a, s_b, ALONG_CLASSES, UNIT
        )
        logit_t = _logit(
            teacher, n, a, b, target, inside, classes, t_class, t_n, t_a, t_b, ALONG_CLASSES, UNIT
        )
        top_s, top_t, sum_s, sum_t, mixed = empty + NO_LOGIT, empty + NO_LOGIT, empty, empty, empty
        for begin in range(0, classes, BLOCK_CLASSES):
            index = begin + lane
            s = _chunk(
                student, class_mask, sample, n, a, b, index, read, inside, classes,
                s_class, s_n, s_a, s_b, ALONG_CLASSES, UNIT,
            )  # fmt: skip
            t = _chunk(
                teacher, class_mask, sample, n, a, b, index, read, inside, classes,
                t_class, t_n, t_a, t_b, ALONG_CLASSES, UNIT,
            )  # fmt: skip
            at_target = index[None, :] == target[:, None]
            s, t = tl.where(at_target, -INFINITY, s), tl.where(at_target, -INFINITY, t)
            top_s, sum_s, top_t, sum_t, mixed = observe(
                s, t, top_s, sum_s, top_t, sum_t, mixed, k, parameter0, parameter1, OBJECTIVE
            )
        row_top_s, row_top_t = tl.max(top_s, 1), tl.max(top_t, 1)

    a_, b_, c_, d_ = weight_objective, weight_objective, weight_objective, weight_objective
    counts = inside
    if OBJECTIVE != "none":
        row_sum_s, row_sum_t, row_mixed = combine(
            top_s,
            sum_s,
            top_t,
            sum_t,
            mixed,
            row_top_s,
            row_top_t,
            k,
            parameter0,
            parameter1,
            OBJECTIVE,
            False,
        )
        if class_mask is not None:  # a row none of whose classes is inside the mask
            counts = inside & (row_sum_t != 0)
            row_sum_s = tl.where(counts, row_sum_s, 1.0)
            row_sum_t = tl.where(counts, row_sum_t, 1.0)
        first, second = row_mixed, row_mixed
        if OBJECTIVE == "jsd" or OBJECTIVE == "tvd":
            first_part, second_part = empty, empty
            for begin in range(0, classes, BLOCK_CLASSES):
                index = begin + lane
                s = _chunk(
                    student, class_mask, sample, n, a, b, index, read, inside, classes,
                    s_class, s_n, s_a, s_b, ALONG_CLASSES, UNIT,
                )  # fmt: skip
                t = _chunk(
                    teacher, class_mask, sample, n, a, b, index, read, inside, classes,
                    t_class, t_n, t_a, t_b, ALONG_CLASSES, UNIT,
                )  # fmt: skip
                terms = compare(
                    s, t, row_top_s[:, None], row_top_t[:, None], row_sum_s[:, None],
                    row_sum_t[:, None], k, parameter0, OBJECTIVE,
                )  # fmt: skip
                first_part, second_part = first_part + terms[0], second_part + terms[1]
            first, second = tl.sum(first_part, 1), tl.sum(second_part, 1)
        value, a_, b_, c_, d_ = settle(
            row_sum_s, row_sum_t, row_mixed, first, second, (logit_s - row_top_s) * k,
            (logit_t - row_top_t) * k, weight_objective, T, parameter0, parameter1,
            gradient_scale, OBJECTIVE,
        )  # fmt: skip
        loss += value
    loss = tl.where(counts, loss, 0.0)
    if row_losses is not None:
        tl.store(row_losses + row, loss, mask=there)
    tl.store(losses + program, tl.sum(loss, 0).to(tl.float64))
    tl.store(agreements + program, agreed)

    if grad is not None:
        # The gradient may take the student's place: every thread is to have read its logits.
        tl.debug_barrier()
        if OBJECTIVE == "dkd" and CROSS_ENTROPY:
            # Loaded again, for there are too few registers to keep them from the start.
            _row, _inside, label, _weight, weight_label = describe_rows(
                n, a, b, there, labels, mask, weight, factors, row_n, row_a, row_b,
                rows_per_sample, ignore_index,
            )  # fmt: skip
            weight_label *= gradient_scale
        for begin in range(0, classes, BLOCK_CLASSES):
            index = begin + lane
            s = _chunk(
                student, class_mask, sample, n, a, b, index, read, inside, classes,
                s_class, s_n, s_a, s_b, ALONG_CLASSES, UNIT,
            )  # fmt: skip
            t = _chunk(
                teacher, class_mask, sample, n, a, b, index, read, inside, classes,
                t_class, t_n, t_a, t_b, ALONG_CLASSES, UNIT,
            )  # fmt: skip
            if OBJECTIVE == "dkd":
                at_target = index[None, :] == target[:, None]
            found = gradient(
                s, t, at_target, row_top_s[:, None], row_top_t[:, None], a_[:, None], b_[:, None],
                c_[:, None], d_[:, None], k, parameter0, parameter1, OBJECTIVE,
            )  # fmt: skip
            if CROSS_ENTROPY:
                found += gradient_label(
                    s, index[None, :] == label[:, None], best_s[:, None], row_total[:, None],
                    weight_label[:, None], smoothing, classes, SMOOTHED,
                )  # fmt: skip
            found = tl.where(counts[:, None] & (s != -INFINITY), found, 0.0)
            at = tile_offsets(n, a, b, index, g_class, g_n, g_a, g_b, ALONG_CLASSES, UNIT)
            written = there[:, None] & (index < classes)[None, :]
            tl.store(grad + at, found.to(grad.dtype.element_ty), mask=written)


def tile_of(layout: Layout, classes: int, item_size: int) -> tuple[int, int, int]:
    """Rows and classes of a tile, and warps, for logits of ``item_size`` bytes (the smaller)."""
    if layout.along_classes:
        columns = min(ROW_CHUNK, power_of_two(classes))
        # Short rows, which cwd over few pixels has, share a program.
        rows = min(max(1, 512 // columns), power_of_two(layout.sizes[2]))
        return rows, columns, max(1, rows * columns // 256)
    rows = min(128 // item_size, max(16, power_of_two(layout.sizes[2])))
    return rows, DENSE_CHUNK, rows * DENSE_CHUNK // 256


def launch_streamed(
    layout: Layout,
    student: Tensor,
    teacher: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor]:
    """Each program's loss (float64) and agreements; arguments as in ``arrange``."""
    item_size = min(student.element_size(), teacher.element_size())
    tile = tile_of(layout, student.shape[1], item_size)
    launch = arrange(layout, tile, student, teacher, *others)
    registers = all_registers(launch.constants["num_warps"])
    streamed_kernel[(launch.programs,)](*launch.arguments, **launch.constants, maxnreg=registers)
    return launch.losses, launch.agreements
