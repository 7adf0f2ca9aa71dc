"""The distillation loss of two linear heads: their logits never exist as a whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isp_distill.ops.distill_loss.call import Result, differentiable_loss, flat, scale_of
from isp_distill.ops.distill_loss.heads import check_pair, checked_chunk, checked_head
from isp_distill.ops.distill_loss.options import (
    checked_options,
    checked_rows,
    flag,
)
from isp_distill.ops.stored_gradient import is_transformed


def linear_distill_loss(
    student_features: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    labels: Tensor | None = None,
    *,
    chunk_rows: int | None = None,
    objective: str = "forward_kl",
    temperature: float = 1.0,
    alpha: float = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_agreement: bool = False,
) -> Result:
    """:func:`distill_loss` of two linear heads, whose logits ``[N, C]`` never exist as a whole.

    Equal to ``distill_loss(F.linear(student_features, student_weight, student_bias), ...)``. The
    rows are taken in chunks; the logits of one chunk exist at a time.

    Args:
        student_features: ``[N, D]``.
        student_weight: ``[C, D]``, of the features' dtype.
        student_bias: ``[C]`` or None.
        teacher_features: ``[N, D']``; like all of the teacher, without gradient.
        teacher_weight: ``[C, D']``.
        teacher_bias: ``[C]`` or None.
        labels: classes ``[N]``.
        chunk_rows: rows of a chunk; None takes at most 32 MiB of student logits on the CPU, four
            times that elsewhere.
        objective: this and all else as in :func:`distill_loss`; not "cwd".
        temperature: see there.
        alpha: see there.
        mask: see there; ``[N]``.
        weight: see there.
        ignore_index: see there.
        label_smoothing: see there.
        reduction: see there; not "none", whose rows would each scale the gradient of the weight.
        return_agreement: see there.

    Returns:
        As :func:`distill_loss`; differentiable in the student's features, weight and bias.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for a wrong shape, device, name or range.
        BackendError: if the backend that was asked for cannot serve the call.

    Examples:
        >>> features, head = torch.randn(64, 32), torch.randn(1000, 32, requires_grad=True)
        >>> of_teacher, head_of_teacher = torch.randn(64, 48), torch.randn(1000, 48)
        >>> loss = isp_distill.linear_distill_loss(
        ...     features, head, None, of_teacher, head_of_teacher, None
        ... )
        >>> loss.backward()
        >>> head.grad.shape
        torch.Size([1000, 32])
    """
    options = checked_options(
        objective, temperature, alpha, ignore_index, label_smoothing, reduction
    )
    return_agreement = flag("return_agreement", return_agreement)
    if options.objective == "cwd" or reduction == "none":
        raise ValueError('linear_distill_loss has neither objective "cwd" nor reduction="none"')
    student = checked_head("student", student_features, student_weight, student_bias)
    teacher = checked_head("teacher", teacher_features, teacher_weight, teacher_bias)
    check_pair(student, teacher, options)
    features, count = student.features, len(student.features)
    rows = checked_rows(features, (count,), labels, mask, weight, options)
    chunk_rows = checked_chunk(chunk_rows, student)
    if is_transformed(*student):
        logits = F.linear(*student), F.linear(*teacher)
        loss, agreement = differentiable_loss(*logits, None, rows, options)
        return (loss, agreement) if return_agreement else loss
    with_gradient = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in student
    )
    result = torch.ops.isp_distill.linear_distill_loss(
        *(t if t is None else t.resolve_neg() for t in student),
        *(t if t is None else t.detach().resolve_neg() for t in teacher),
        min(chunk_rows, count),
        *rows,
        *flat(options),
        with_gradient,
        scale_of(features, count, options),
    )
    return (result[0], result[1]) if return_agreement else result[0]
