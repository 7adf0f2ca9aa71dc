"""The distillation loss of two linear heads: their logits never exist as a whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isp_distill.arguments import autocast_type
from isp_distill.ops.distill_loss import operator as operators
from isp_distill.ops.distill_loss.call import Result, by_reference, flat, gradient_scale
from isp_distill.ops.distill_loss.options import (
    check_dense,
    check_device,
    check_logits,
    checked_options,
    checked_rows,
    flag,
    whole_number,
)


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
        chunk_rows: rows of a chunk; None takes about 16 million bytes of student logits on the CPU,
            eight times that elsewhere.
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
    heads = []
    for name, features, matrix, bias in (
        ("student", student_features, student_weight, student_bias),
        ("teacher", teacher_features, teacher_weight, teacher_bias),
    ):
        parts = [("features", features), ("weight", matrix)]
        for part, tensor in parts + ([] if bias is None else [("bias", bias)]):
            check_dense(f"{name}_{part}", tensor)
            if not tensor.dtype.is_floating_point:
                raise TypeError(
                    f"{name}_{part} must be a floating-point tensor, not {tensor.dtype}"
                )
            if part != "bias" and (tensor.dim() != 2 or 0 in tensor.shape):
                raise ValueError(f"{name}_{part} has shape {list(tensor.shape)}: expected [n, D]")
        if features.shape[1] != matrix.shape[1]:
            raise ValueError(
                f"{name}_features has {features.shape[1]} columns, {name}_weight {matrix.shape[1]}"
            )
        if bias is not None and tuple(bias.shape) != (matrix.shape[0],):
            raise ValueError(
                f"{name}_bias has shape {list(bias.shape)}: expected [{matrix.shape[0]}]"
            )
        check_device(student_features, **{f"{name}_weight": matrix, f"{name}_bias": bias})
        dtype = autocast_type(features.device)
        if dtype is not None:
            features, matrix = features.to(dtype), matrix.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if matrix.dtype != features.dtype or (bias is not None and bias.dtype != features.dtype):
            raise TypeError(f"{name}: features, weight and bias must have the same dtype")
        heads.append((features, matrix, bias))
    (features, matrix, bias), (t_features, t_matrix, t_bias) = heads
    count, classes = features.shape[0], matrix.shape[0]
    if t_features.shape[0] != count or t_matrix.shape[0] != classes:
        raise ValueError(
            f"student has {count} rows and {classes} classes, "
            f"teacher {t_features.shape[0]} and {t_matrix.shape[0]}"
        )
    check_logits(
        features[:1, :1].expand(count, classes), t_features[:1, :1].expand(count, classes), options
    )
    rows = checked_rows(features, (count,), labels, mask, weight, options)
    if chunk_rows is not None:
        chunk_rows = whole_number("chunk_rows", chunk_rows)
    else:
        budget = 2**24 if features.device.type == "cpu" else 2**27
        chunk_rows = max(16, budget // (classes * features.element_size()))
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    if operators.is_transformed(features, matrix, bias):
        logits = F.linear(features, matrix, bias), F.linear(t_features, t_matrix, t_bias)
        loss, agreement = by_reference(*logits, None, rows, options)
        return (loss, agreement) if return_agreement else loss
    wanted = [features, matrix] + ([] if bias is None else [bias])
    with_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in wanted)
    result = torch.ops.isp_distill.linear_distill_loss(
        features.resolve_neg(),
        matrix.resolve_neg(),
        None if bias is None else bias.resolve_neg(),
        t_features.detach().resolve_neg(),
        t_matrix.detach().resolve_neg(),
        None if t_bias is None else t_bias.detach().resolve_neg(),
        min(chunk_rows, count),
        *rows,
        *flat(options),
        with_gradient,
        gradient_scale(features, count, options),
    )
    return (result[0], result[1]) if return_agreement else result[0]
