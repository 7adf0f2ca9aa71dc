"""The distillation loss: both logits in, loss and gradient out, in one pass.

The public calls. They check their arguments (``options.py``) and call an operator
(``operator.py``: fake, gradient), which runs what a backend provides
(``backend.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isp_distill.arguments import is_plain_eager
from isp_distill.ops.distill_loss import operator as operators
from isp_distill.ops.distill_loss.backend import logits_loss, reference_loss
from isp_distill.ops.distill_loss.inplace import InPlace, check_may_overwrite
from isp_distill.ops.distill_loss.options import (
    Options,
    check_dense,
    check_logits,
    check_values,
    checked_options,
    checked_rows,
    checked_size,
    flag,
)
from isp_distill.ops.distill_loss.request import Rows
from isp_distill.ops.stored_gradient import gradient_scale, is_transformed

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
      b = 0.5, in [1e-6, 1 - 1e-6]; Agarwal et al. 2024.
    - ``"tvd"``: ``sum |p - q| / 2``, total variation distance.
    - ``"dkd"`` or ``"dkd(a, b)"``: ``T^2 (a TCKD + b NCKD)``, a = 1, b = 8, at most 1e6, Zhao et
      al. 2022; the target class is the label, or the teacher's choice where there is none.
    - ``"mse"``: ``sum (student - teacher)^2`` over the classes, without temperature.
    - ``"cwd"``: ``T^2 KL(p || q)`` where a row is one channel of one sample and the softmax runs
      over its pixels; Shu et al. 2021. Needs ``[N, C, ...]`` with at least one axis of pixels.
    - ``"binary_kl"`` or ``"binary_kl(g, f)"``: for models whose classes do not exclude each other
      (multi-label teachers, detection heads). With ``p = sigmoid(teacher / T)`` and ``q`` alike,
      ``T^2 sum w KL(Bernoulli(p) || Bernoulli(q))`` over the classes. ``w = max(p, f)^g``, g = 0 in
      [0, 16], f = 0 in [0, 1], weighs an element by the teacher's confidence, as focal losses do.

    Args:
        student: logits ``[N, C]`` or ``[N, C, ...]``, any strides; float32, bfloat16, float16
            (computed in float32) or float64. Finite; a NaN is seen in loss and gradient.
        teacher: logits of the same shape, of any of these dtypes. It gets no gradient, as if it
            were detached. -inf rules a class out, as a limit; at least one class of a row must be
            finite.
        labels: classes ``[N, ...]``, an integer dtype; needed where ``alpha < 1``.
        objective: see above.
        temperature: T in [0.001, 1000], of the objective alone; cross entropy has none. A number:
            neither this nor any other option has a gradient.
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
            are gone, also for views of them; backward works once, and not if the memory was
            changed before it. Has no effect where the student needs no gradient, under
            ``torch.compile``, which plans memory by itself, under modes that look at operations,
            and for subclasses of tensors.

    Returns:
        The loss, float32 (float64 for a float64 student), and the agreement if asked for. A batch
        in which no row counts gives 0 and zero gradients. Under a transform of ``torch.func``, or
        with a tangent of forward-mode differentiation, the reference computes it, on any backend
        and without ``inplace_grad``.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for a wrong shape, device, name or range.
        RuntimeError: for a second derivative by backward passes, which does not exist (by
            ``torch.func`` it does); with ``inplace_grad``, if the student is a leaf that needs its
            values or a view of one, a negated view, may overlap itself (unless each stride steps
            over all smaller ones), or shares memory with another tensor of the call.
        BackendError: if the backend that was asked for cannot serve the call.

    Examples:
        >>> student, teacher = torch.randn(8, 1000, requires_grad=True), torch.randn(8, 1000)
        >>> loss = isp_distill.distill_loss(student, teacher, temperature=2.0)
        >>> loss.backward()
        >>> student.grad.shape
        torch.Size([8, 1000])
        >>> _, agreed = isp_distill.distill_loss(student, student, return_agreement=True)
        >>> int(agreed)
        8
    """
    options = checked_options(
        objective, temperature, alpha, ignore_index, label_smoothing, reduction
    )
    return_agreement = flag("return_agreement", return_agreement)
    inplace_grad = flag("inplace_grad", inplace_grad)
    check_logits(student, teacher, options)
    positions = (student.shape[0], *student.shape[2:])
    rows = checked_rows(student, positions, labels, mask, weight, options)
    if is_transformed(student):
        loss, agreement = differentiable_loss(student, teacher, None, rows, options)
        return (loss, agreement) if return_agreement else loss
    with_gradient = torch.is_grad_enabled() and student.requires_grad
    scale = scale_of(student, math.prod(positions), options)
    plain = is_plain_eager(student, teacher, *rows)
    teacher = teacher.detach().resolve_neg()
    if plain and not with_gradient:
        loss, agreement = logits_loss(student.resolve_neg(), teacher, rows, options, None, scale)
        return (loss, agreement) if return_agreement else loss
    others = (teacher, *rows, *flat(options))
    if plain and inplace_grad:
        check_may_overwrite(student, others)
        loss, agreement = InPlace.apply(student, others, options, scale)
    elif plain:
        loss, agreement = operators.Direct.apply(student.resolve_neg(), others, options, scale)
    else:
        loss, agreement, _ = torch.ops.isp_distill.distill_loss(
            student.resolve_neg(), *others, with_gradient, scale
        )
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

    Examples:
        >>> student = torch.randn(2, 19, 16, 16, requires_grad=True)
        >>> teacher = torch.randn(2, 19, 32, 32)
        >>> loss = isp_distill.upsampled_distill_loss(student, teacher, size=(128, 128))
        >>> loss.backward()
        >>> student.grad.shape
        torch.Size([2, 19, 16, 16])
    """
    options = checked_options(
        objective, temperature, alpha, ignore_index, label_smoothing, reduction
    )
    return_agreement = flag("return_agreement", return_agreement)
    align_corners = flag("align_corners", align_corners)
    height, width = checked_size(size)
    for name, logits in (("student", student), ("teacher", teacher)):
        check_dense(name, logits)
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
    if is_transformed(student):
        resize = ((height, width), align_corners)
        loss, agreement = differentiable_loss(student, teacher, resize, rows, options)
        return (loss, agreement) if return_agreement else loss
    with_gradient = torch.is_grad_enabled() and student.requires_grad
    if with_gradient and reduction == "none":
        raise ValueError(
            'upsampled_distill_loss has no gradient of reduction="none": pixels would each scale '
            "their share of the low-resolution gradient; weigh them by mask and weight instead"
        )
    loss, agreement, _ = torch.ops.isp_distill.upsampled_distill_loss(
        student.resolve_neg(),
        teacher.detach().resolve_neg(),
        height,
        width,
        align_corners,
        *rows,
        *flat(options),
        with_gradient,
        scale_of(student, math.prod(positions), options, resized=True),
    )
    return (loss, agreement) if return_agreement else loss


def differentiable_loss(
    student: Tensor,
    teacher: Tensor,
    resize: tuple[tuple[int, int], bool] | None,
    rows: Rows,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """What transforms of ``torch.func`` and forward-mode differentiation look into."""
    labels, _, weight = rows
    if not any(x is not None and torch._C._functorch.is_batchedtensor(x) for x in (labels, weight)):
        check_values(labels, weight, student.shape[1], options.ignore_index)
    return reference_loss(student, teacher, resize, rows, options)


def flat(options: Options) -> tuple[Any, ...]:
    """The options as the operators take them, one after the other."""
    return (
        options.objective,
        list(options.parameters),
        options.temperature,
        options.alpha,
        options.ignore_index,
        options.label_smoothing,
        options.reduction,
    )


def scale_of(student: Tensor, rows: int, options: Options, resized: bool = False) -> float:
    """See :func:`isp_distill.ops.stored_gradient.gradient_scale`."""
    reduction = options.reduction
    if options.objective == "cwd":  # its rows are the maps of the classes, for "batchmean" too
        rows, resized = student.shape[0] * student.shape[1], False
        reduction = "mean" if reduction == "batchmean" else reduction
    return gradient_scale(student, rows, reduction, resized)
