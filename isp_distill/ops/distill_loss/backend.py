"""What a backend of the distillation loss provides, and how the operators run it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from isp_distill.backends import choice
from isp_distill.ops import reference
from isp_distill.ops.distill_loss.options import Options, check_values
from isp_distill.ops.distill_loss.request import Call, Rows
from isp_distill.ops.stored_gradient import reference_with_gradient

# The matrix product of torch on the CPU reads a weight of many classes by its columns at two thirds
# of its own speed (256 rows, 768 features, 32000 classes, Zen 3: 92 GFLOP/s, in such blocks 123).
_CLASSES_OF_A_PRODUCT = 1024


class Kernels(Protocol):
    """The functions of a fused backend (``Implementation.functions``).

    Both add up ``factors[0] * weight * objective + factors[1] * weight * cross_entropy`` over the
    rows that count in each. Rows outside the mask are not read and get a zero gradient. With
    ``options.reduction == "none"`` the loss has one value for each row. The result is the loss,
    float32 (float64 for a float64 student), and the agreement, an int64 scalar.
    """

    def logits(self, student: Tensor, teacher: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Student, teacher and gradient are ``[N, C, ...]`` of any strides."""
        ...

    def upsampled(
        self,
        student: Tensor,
        teacher: Tensor,
        size: tuple[int, int],
        align_corners: bool,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        """Logits ``[N, C, h, w]`` of either resolution; rows are the pixels of ``size``."""
        ...


choice.register(choice.Implementation("distill_loss", "reference", reference.distill_loss))


def choose(
    student: Tensor,
    teacher: Tensor,
    options: Options,
    form: str,
    size: tuple[int, int] | None = None,
) -> choice.Implementation:
    """Who serves a call; ``form`` is "logits", "upsampled" (to a size) or "linear"."""
    return choice.choose(
        "distill_loss",
        student.device,
        form=form,
        objective=options.objective,
        student=student.dtype,
        teacher=teacher.dtype,
        classes=student.shape[1],
        classes_together=student.stride(1) == 1 and teacher.stride(1) == 1,
        sizes=None if size is None else (student.shape[2:], teacher.shape[2:], size),
    )


# ------------------------------------------------------------------ results not yet computed


def result_dtype(student: Tensor) -> torch.dtype:
    """The dtype of a loss."""
    return torch.float64 if student.dtype == torch.float64 else torch.float32


def empty_result(
    student: Tensor, positions: Sequence[int], objective: str, reduction: str
) -> tuple[Tensor, Tensor]:
    """Loss and agreement of the right shape and dtype, without values."""
    shape: Sequence[int] = ()
    if reduction == "none":
        shape = student.shape[:2] if objective == "cwd" else positions
    loss = student.new_empty(shape, dtype=result_dtype(student))
    return loss, student.new_empty((), dtype=torch.int64)


def empty_gradient(student: Tensor, wanted: bool) -> Tensor:
    """Memory for the gradient in the student's own layout; of no elements if it is not wanted."""
    return torch.empty_like(student) if wanted else student.new_empty(0)


def empty_head_gradients(
    features: Tensor, matrix: Tensor, bias: Tensor | None, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the gradients of a linear head, those of its parameters in float32 or float64."""
    if not wanted:
        return features.new_empty(0), features.new_empty(0), features.new_empty(0)
    dtype = result_dtype(features)
    return (
        features.new_empty(features.shape),
        matrix.new_empty(matrix.shape, dtype=dtype),
        matrix.new_empty(0 if bias is None else bias.shape, dtype=dtype),
    )


# ------------------------------------------------------------------ running a backend


def reduction_factors(
    device: torch.device, batch: int, positions: Sequence[int], rows: Rows, options: Options
) -> Tensor:
    """What each term of the loss is multiplied by, ``[2]``, float64; without a look at the device.

    ``alpha`` and ``1 - alpha``, divided as the reduction asks. For ``cwd`` the first counts samples
    with at least one pixel inside the mask; the number of channels is left to the caller.
    """
    labels, mask, weight = rows
    shares = [options.alpha, 1 - options.alpha]
    if options.reduction == "batchmean":
        shares = [share / batch for share in shares]
    every_row_counts = all(row is None for row in rows)
    if options.reduction == "mean" and every_row_counts:
        of_objective = batch if options.objective == "cwd" else math.prod(positions)
        shares = [shares[0] / of_objective, shares[1] / math.prod(positions)]
    if device.type == "cpu" and (options.reduction != "mean" or every_row_counts):
        return _factors_of(*shares)
    # Filled in on the device: a copy from the host could not be captured in a CUDA graph.
    given = torch.stack([torch.full((), x, dtype=torch.float64, device=device) for x in shares])
    if options.reduction != "mean" or every_row_counts:
        return given
    of_row = math.prod(positions) // batch
    w = torch.ones(batch, dtype=torch.float64, device=device) if weight is None else weight.double()
    ignored = None if labels is None else labels != options.ignore_index
    inside = mask if options.objective != "cwd" or mask is None else _any_pixel(mask)
    labelled = mask if ignored is None else ignored if mask is None else ignored & mask
    # Rows of a sample that count: in the objective, in cross entropy.
    whole = (1 if options.objective == "cwd" else of_row, of_row)
    totals = []
    for counts, all_rows in zip((inside, labelled), whole, strict=True):
        if counts is None:
            totals.append(w.sum() * all_rows)
        else:
            totals.append((counts.reshape(batch, -1).sum(1) * w).sum())
    total = torch.stack(totals)
    return given / torch.where(total > 0, total, 1)


@lru_cache(maxsize=256)
def _factors_of(of_objective: float, of_entropy: float) -> Tensor:
    """Two numbers as a tensor, which nobody writes to."""
    return torch.tensor([of_objective, of_entropy], dtype=torch.float64, device="cpu")


def _any_pixel(mask: Tensor) -> Tensor:
    return mask.reshape(mask.shape[0], -1).any(1, keepdim=True)


def logits_loss(
    student: Tensor,
    teacher: Tensor,
    rows: Rows,
    options: Options,
    gradient: Tensor | None,
    gradient_scale: float,
) -> tuple[Tensor, Tensor]:
    """Loss and agreement of logits ``[N, C, ...]``; fills ``gradient``, or the student itself."""
    labels, _, weight = rows
    check_values(labels, weight, student.shape[1], options.ignore_index)
    chosen = choose(student, teacher, options, "logits")
    if chosen.backend == "reference":
        return _reference_with_gradient(
            student, teacher, None, rows, options, gradient, gradient_scale
        )
    positions = (student.shape[0], *student.shape[2:])
    factors = _factors(student, positions, rows, options)
    kernels: Kernels = chosen.functions
    call = Call(rows, factors, options, gradient, gradient_scale)
    return kernels.logits(student, teacher, call)


def upsampled_loss(
    student: Tensor,
    teacher: Tensor,
    size: tuple[int, int],
    align_corners: bool,
    rows: Rows,
    options: Options,
    gradient: Tensor | None,
    gradient_scale: float,
) -> tuple[Tensor, Tensor]:
    """Loss and agreement at ``size`` of logits ``[N, C, h, w]``; fills ``gradient``."""
    labels, _, weight = rows
    check_values(labels, weight, student.shape[1], options.ignore_index)
    chosen = choose(student, teacher, options, "upsampled", size)
    if chosen.backend == "reference":
        resize = (size, align_corners)
        return _reference_with_gradient(
            student, teacher, resize, rows, options, gradient, gradient_scale
        )
    factors = _factors(student, (student.shape[0], *size), rows, options)
    kernels: Kernels = chosen.functions
    call = Call(rows, factors, options, gradient, gradient_scale)
    return kernels.upsampled(student, teacher, size, align_corners, call)


def _factors(student: Tensor, positions: Sequence[int], rows: Rows, options: Options) -> Tensor:
    factors = reduction_factors(student.device, student.shape[0], positions, rows, options)
    if options.objective == "cwd" and options.reduction == "mean":
        factors = factors.clone()
        factors[0] /= student.shape[1]
    return factors


def reference_loss(
    student: Tensor,
    teacher: Tensor,
    resize: tuple[tuple[int, int], bool] | None,
    rows: Rows,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """Loss and agreement by the reference, in operations of torch that know every derivative.

    ``resize``: the full resolution of logits of a lower one, and ``align_corners``.
    """
    labels, mask, weight = rows

    def upsampled(logits: Tensor) -> Tensor:
        if resize is None:
            return logits
        interpolate = partial(
            F.interpolate, size=resize[0], mode="bilinear", align_corners=resize[1]
        )
        # A class that the teacher rules out: -inf times a weight of 0 is not a number. In float64,
        # where what rounding leaves of a weight of 0 is far below any other weight.
        ruled_out = logits == -math.inf
        weight = interpolate(ruled_out.double())
        wide = interpolate(logits.to(result_dtype(student)).masked_fill(ruled_out, 0))
        return wide.masked_fill(weight > 1e-8, -math.inf)

    return reference.distill_loss(
        upsampled(student),
        upsampled(teacher),
        labels,
        objective=options.objective,
        parameters=options.parameters,
        temperature=options.temperature,
        alpha=options.alpha,
        mask=mask,
        weight=weight,
        ignore_index=options.ignore_index,
        label_smoothing=options.label_smoothing,
        reduction=options.reduction,
    )


def _reference_with_gradient(
    student: Tensor,
    teacher: Tensor,
    resize: tuple[tuple[int, int], bool] | None,
    rows: Rows,
    options: Options,
    gradient: Tensor | None,
    gradient_scale: float,
) -> tuple[Tensor, Tensor]:
    """Loss and agreement by the reference; fills ``gradient``, as a fused backend does."""
    return reference_with_gradient(
        student,
        lambda leaf: reference_loss(leaf, teacher, resize, rows, options),
        gradient,
        gradient_scale,
    )


def linear_loss(
    student: tuple[Tensor, Tensor, Tensor | None],
    teacher: tuple[Tensor, Tensor, Tensor | None],
    chunk_rows: int,
    rows: Rows,
    options: Options,
    with_gradient: bool,
    gradient_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, agreement and the gradients of features, weight and bias of two linear heads.

    The loss of a chunk needs the denominators of the whole batch, so they come first. What a chunk
    leaves is its share of the loss and of the gradients; its logits become its gradient in place.
    """
    features, matrix, bias = student
    t_features, t_matrix, t_bias = teacher
    labels, _, weight = rows
    count, classes = features.shape[0], matrix.shape[0]
    check_values(labels, weight, classes, options.ignore_index)
    chosen = choose(features, t_features, options, "linear")
    factors = reduction_factors(features.device, count, (count,), rows, options)
    of_features, of_matrix, of_bias = empty_head_gradients(features, matrix, bias, with_gradient)
    of_matrix.zero_()
    of_bias.zero_()
    loss = torch.zeros((), dtype=torch.float64, device=features.device)
    agreement = torch.zeros((), dtype=torch.int64, device=features.device)
    summed = replace(options, reduction="sum")
    # One memory for the logits of all chunks: the system clears every page that it hands out anew.
    of_student = features.new_empty((min(chunk_rows, count), classes))
    of_teacher = t_features.new_empty((min(chunk_rows, count), classes))
    for begin in range(0, count, chunk_rows):
        part = slice(begin, min(begin + chunk_rows, count))
        s = _logits(features[part], matrix, bias, of_student)
        t = _logits(t_features[part], t_matrix, t_bias, of_teacher)
        labels, mask, weight = (None if row is None else row[part] for row in rows)
        part_rows = (labels, mask, weight)
        gradient = s if with_gradient else None
        if chosen.backend == "reference":
            chunk_loss, agreed = _chunk_by_reference(
                s, t, part_rows, factors, summed, gradient, gradient_scale
            )
        else:
            call = Call(part_rows, factors, summed, gradient, gradient_scale)
            chunk_loss, agreed = chosen.functions.logits(s, t, call)
        loss += chunk_loss
        agreement += agreed
        if with_gradient:
            torch.mm(s, matrix, out=of_features[part])
            if of_matrix.dtype == s.dtype and gradient_scale == 1.0:
                of_matrix.addmm_(s.t(), features[part])
            else:
                of_matrix += (s.t() @ features[part]).to(of_matrix.dtype) / gradient_scale
            if bias is not None:
                of_bias += s.sum(0, dtype=of_bias.dtype) / gradient_scale
    return loss.to(result_dtype(features)), agreement, of_features, of_matrix, of_bias


def _logits(features: Tensor, matrix: Tensor, bias: Tensor | None, memory: Tensor) -> Tensor:
    """``F.linear``, into the first rows of ``memory``."""
    out = memory[: len(features)]
    in_blocks = features.device.type == "cpu" and features.dtype == torch.float32
    step = _CLASSES_OF_A_PRODUCT if in_blocks else max(len(matrix), 1)
    for begin in range(0, len(matrix), step):
        part = slice(begin, begin + step)
        block, classes = out[:, part], matrix[part].t()
        if bias is None:
            torch.mm(features, classes, out=block)
        else:
            torch.addmm(bias[part], features, classes, out=block)
    return out


def _chunk_by_reference(
    student: Tensor,
    teacher: Tensor,
    rows: tuple[Tensor | None, ...],
    factors: Tensor,
    options: Options,
    gradient: Tensor | None,
    gradient_scale: float,
) -> tuple[Tensor, Tensor]:
    """The reference knows no factors: its two terms are taken one by one."""
    labels, mask, weight = rows
    loss = torch.zeros((), dtype=torch.float64, device=student.device)
    agreement = torch.zeros((), dtype=torch.int64, device=student.device)
    total = torch.zeros_like(student) if gradient is not None else None
    for alpha, factor in ((1.0, factors[0]), (0.0, factors[1])):
        if alpha == 0.0 and (labels is None or options.alpha == 1):
            continue
        one = replace(options, alpha=alpha, reduction="sum")
        term = None if total is None else torch.empty_like(student)
        value, agreement = _reference_with_gradient(
            student, teacher, None, (labels, mask, weight), one, term, gradient_scale
        )
        loss += value * factor
        if total is not None and term is not None:
            total += term * factor
    if gradient is not None and total is not None:
        gradient.copy_(total)
    return loss, agreement
