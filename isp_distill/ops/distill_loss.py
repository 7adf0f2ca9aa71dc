"""The distillation loss: both logits in, loss and gradient out, in one pass.

The public calls. They check their arguments (``distill_options.py``) and call an operator
(``distill_operators.py``: fake, gradient), which runs what a backend provides
(``distill_backend.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isp_distill.arguments import autocast_type
from isp_distill.ops import distill_operators as operators
from isp_distill.ops.distill_options import (
    Options,
    check_device,
    check_logits,
    checked_options,
    checked_rows,
)

Result = Tensor | tuple[Tensor, Tensor]


def distill_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    objective: str = "forward_kl",
    temperature: float = 1.0,
    alpha: float = 1.0,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    return_agreement: bool = False,
    inplace_grad: bool = False,
) -> Result:
    """``alpha * objective(student, teacher) + (1 - alpha) * cross_entropy(student, labels)``.

    With ``p = softmax(teacher / T)`` and ``q = softmax(student / T)`` over the classes, a row being
    one position of one sample, the objectives are, per row:

    - ``"forward_kl"``: ``T^2 KL(p || q)``, Hinton et al. 2015.
    - ``"reverse_kl"``: ``T^2 KL(q || p)``, infinite where the teacher rules out a class by -inf.
    - ``"jsd"`` or ``"jsd(b)"``: ``T^2 (b KL(p || m) + (1-b) KL(q || m))``, ``m = b p + (1-b) q``,
      b = 0.5; Agarwal et al. 2024.
    - ``"tvd"``: ``sum |p - q| / 2``, total variation distance.
    - ``"dkd"`` or ``"dkd(a, b)"``: ``T^2 (a TCKD + b NCKD)``, a = 1, b = 8, Zhao et al. 2022; the
      target class is the label, or the teacher's choice where there is none.
    - ``"mse"``: ``sum (student - teacher)^2`` over the classes, without temperature.
    - ``"cwd"``: ``T^2 KL(p || q)`` where a row is one channel of one sample and the softmax runs
      over its pixels; Shu et al. 2021. Needs ``[N, C, ...]`` with at least one axis of pixels.

    Args:
        student: logits ``[N, C]`` or ``[N, C, ...]``, any strides; float32, bfloat16, float16
            (computed in float32) or float64. Finite.
        teacher: logits of the same shape, of any of these dtypes. It gets no gradient. -inf rules a
            class out, as a limit; at least one class of a row must be finite.
        labels: classes ``[N, ...]``, an integer dtype; needed where ``alpha < 1``.
        objective: see above.
        temperature: T > 0, of the objective alone; cross entropy has none.
        alpha: share of the objective, in [0, 1].
        mask: ``[N, ...]``, bool or integer: rows where it is 0 count nothing and are not read.
        weight: ``[N]``, finite and not negative: weight of each sample.
        ignore_index: the label of rows that have none; they count in the objective alone.
        label_smoothing: of cross entropy, in [0, 1), as in ``torch.nn.functional.cross_entropy``.
        reduction: "mean" divides each of the two terms by the summed weight of the rows that count
            in it (over dense logits: of pixels), "batchmean" by N, "sum" by nothing; "none" gives a
            value per row, ``[N, ...]`` (``[N, C]`` for cwd).
        return_agreement: also return on how many counting rows student and teacher agree (the
            argmax of their logits), an int64 tensor. It costs nothing.
        inplace_grad: write the gradient over the student's logits, so that nothing of their size is
            ever allocated. The logits must not be used for anything else afterwards: their values
            are gone, also for views of them; backward works once. Has no effect where the student
            needs no gradient, or under ``torch.compile``, which plans memory by itself.

    Returns:
        The loss, float32 (float64 for a float64 student), and the agreement if asked for. A batch
        in which no row counts gives 0 and zero gradients.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for a wrong shape, device, name or range.
        RuntimeError: from a second derivative, which there is none of; with ``inplace_grad``, if
            the student is a leaf that needs its values, or overlaps itself.
        BackendError: if the backend that was asked for cannot serve the call.
    """
    options = checked_options(
        objective, temperature, alpha, ignore_index, label_smoothing, reduction
    )
    check_logits(student, teacher, options)
    positions = (student.shape[0], *student.shape[2:])
    rows = checked_rows(student, positions, labels, mask, weight, options)
    arguments = (student, teacher.detach(), *rows, *_flat(options))
    with_gradient = torch.is_grad_enabled() and student.requires_grad
    scale = _gradient_scale(student, math.prod(positions), options)
    if inplace_grad and with_gradient and not torch.compiler.is_compiling():
        operators.check_may_overwrite(student)
        loss, agreement = operators.InPlace.apply(student, arguments[1:], options, scale)
    elif with_gradient and operators.is_plain_eager(student, teacher):
        loss, agreement = operators.Direct.apply(student, arguments[1:], options, scale)
    else:
        loss, agreement, _ = torch.ops.isp_distill.distill_loss(*arguments, with_gradient, scale)
    return (loss, agreement) if return_agreement else loss


def upsampled_distill_loss(
    student: Tensor,
    teacher: Tensor,
    size: int | Sequence[int],
    labels: Tensor | None = None,
    *,
    align_corners: bool = False,
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
    """:func:`distill_loss` at full resolution of logits at low resolution.

    Equal to ``distill_loss(F.interpolate(student, size, mode="bilinear"), ...)`` of both logits,
    with the gradient at the student's resolution; a fused backend makes no tensor of ``size``.

    Args:
        student: logits ``[N, C, h, w]``.
        teacher: logits ``[N, C, h', w']``; the two resolutions may differ.
        size: the full resolution, (height, width) or one number for both.
        labels: classes ``[N, height, width]``.
        align_corners: as in ``torch.nn.functional.interpolate``.
        objective: this and all else as in :func:`distill_loss`; mask is ``[N, height, width]``.
        temperature: see there.
        alpha: see there.
        mask: see there.
        weight: see there.
        ignore_index: see there.
        label_smoothing: see there.
        reduction: see there; "none" only where the student needs no gradient.
        return_agreement: see there; counts pixels of the full resolution.

    Returns:
        As :func:`distill_loss`.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for a wrong shape, device, name or range.
        BackendError: if the backend that was asked for cannot serve the call.
    """
    options = checked_options(
        objective, temperature, alpha, ignore_index, label_smoothing, reduction
    )
    height, width = (size, size) if isinstance(size, int) else (int(s) for s in size)
    if height < 1 or width < 1:
        raise ValueError(f"size {size} must be positive")
    for name, logits in (("student", student), ("teacher", teacher)):
        if not isinstance(logits, Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(logits).__name__}")
        if logits.dim() != 4:
            raise ValueError(f"{name} has shape {list(logits.shape)}: expected [N, C, h, w]")
        if 0 in logits.shape:
            raise ValueError(f"{name} has shape {list(logits.shape)}: an empty batch has no loss")
    if teacher.shape[:2] != student.shape[:2]:
        raise ValueError(
            f"student has shape {list(student.shape)}, teacher {list(teacher.shape)}: "
            "batch and classes must be the same"
        )
    check_logits(student, teacher[:, :, :1, :1].expand(student.shape), options)
    positions = (student.shape[0], height, width)
    rows = checked_rows(student, positions, labels, mask, weight, options)
    with_gradient = torch.is_grad_enabled() and student.requires_grad
    if with_gradient and reduction == "none":
        raise ValueError(
            'upsampled_distill_loss has no gradient of reduction="none": pixels would each scale '
            "their share of the low-resolution gradient; weigh them by mask and weight instead"
        )
    loss, agreement, _ = torch.ops.isp_distill.upsampled_distill_loss(
        student,
        teacher.detach(),
        height,
        width,
        align_corners,
        *rows,
        *_flat(options),
        with_gradient,
        _gradient_scale(student, math.prod(positions), options),
    )
    return (loss, agreement) if return_agreement else loss


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
    """
    options = checked_options(
        objective, temperature, alpha, ignore_index, label_smoothing, reduction
    )
    if options.objective == "cwd" or reduction == "none":
        raise ValueError('linear_distill_loss has neither objective "cwd" nor reduction="none"')
    heads = []
    for name, features, matrix, bias in (
        ("student", student_features, student_weight, student_bias),
        ("teacher", teacher_features, teacher_weight, teacher_bias),
    ):
        for part, tensor, dim in (("features", features, 2), ("weight", matrix, 2)):
            if not isinstance(tensor, Tensor) or not tensor.dtype.is_floating_point:
                raise TypeError(f"{name}_{part} must be a floating-point tensor")
            if tensor.dim() != dim or 0 in tensor.shape:
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
    if chunk_rows is None:
        budget = 2**24 if features.device.type == "cpu" else 2**27
        chunk_rows = max(16, budget // (classes * features.element_size()))
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    wanted = [features, matrix] + ([] if bias is None else [bias])
    with_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in wanted)
    result = torch.ops.isp_distill.linear_distill_loss(
        features,
        matrix,
        bias,
        t_features.detach(),
        t_matrix.detach(),
        None if t_bias is None else t_bias.detach(),
        min(chunk_rows, count),
        *rows,
        *_flat(options),
        with_gradient,
        _gradient_scale(features, count, options),
    )
    return (result[0], result[1]) if return_agreement else result[0]


def _flat(options: Options) -> tuple[Any, ...]:
    return (
        options.objective,
        list(options.parameters),
        options.temperature,
        options.alpha,
        options.ignore_index,
        options.label_smoothing,
        options.reduction,
    )


def _gradient_scale(student: Tensor, rows: int, options: Options) -> float:
    """What the stored gradient is multiplied by, so that float16 holds it; a power of two.

    The forward does not know the upstream factor, and with it a loss scaler's. A mean over a
    million pixels would underflow before it came.
    """
    if student.dtype != torch.float16 or options.reduction in ("sum", "none"):
        return 1.0
    if options.reduction == "batchmean":
        rows = student.shape[0]
    if options.objective == "cwd":
        rows = student.shape[0] * student.shape[1]
    return float(2 ** (rows.bit_length() - 1))
