"""The operators behind the distillation losses, and the one autograd rule they share.

The forward computes the gradient beside the loss; the backward only scales it by the upstream
scalar. Each operator asks :mod:`isp_distill.backends.choice` who serves it, when it runs, so that
every backend has the same fake, the same gradient and the same checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isp_distill.backends.output_memory import recycled
from isp_distill.ops.distill_loss import backend as compute
from isp_distill.ops.distill_loss import cpu as _distill_cpu  # noqa: F401  (registers a backend)
from isp_distill.ops.distill_loss import cuda as _distill_cuda  # noqa: F401  (likewise)
from isp_distill.ops.distill_loss import triton as _distill_triton  # noqa: F401  (likewise)
from isp_distill.ops.distill_loss.options import Options
from isp_distill.ops.stored_gradient import owned_by, packs_saved_tensors, scaled


@torch.library.custom_op("isp_distill::distill_loss", mutates_args=())
def _distill_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    objective: str,
    parameters: Sequence[float],
    temperature: float,
    alpha: float,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    with_gradient: bool,
    gradient_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    options = Options(
        objective, tuple(parameters), temperature, alpha, ignore_index, label_smoothing, reduction
    )
    gradient = recycled(compute.empty_gradient(student, with_gradient))
    loss, agreement = compute.logits_loss(
        student,
        teacher,
        (labels, mask, weight),
        options,
        gradient if with_gradient else None,
        gradient_scale,
    )
    return loss, agreement, gradient


@torch.library.custom_op("isp_distill::upsampled_distill_loss", mutates_args=())
def _upsampled_distill_loss(
    student: Tensor,
    teacher: Tensor,
    height: int,
    width: int,
    align_corners: bool,
    labels: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    objective: str,
    parameters: Sequence[float],
    temperature: float,
    alpha: float,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    with_gradient: bool,
    gradient_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    options = Options(
        objective, tuple(parameters), temperature, alpha, ignore_index, label_smoothing, reduction
    )
    gradient = recycled(compute.empty_gradient(student, with_gradient))
    loss, agreement = compute.upsampled_loss(
        student,
        teacher,
        (height, width),
        align_corners,
        (labels, mask, weight),
        options,
        gradient if with_gradient else None,
        gradient_scale,
    )
    return loss, agreement, gradient


@torch.library.custom_op("isp_distill::linear_distill_loss", mutates_args=())
def _linear_distill_loss(
    student_features: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    chunk_rows: int,
    labels: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    objective: str,
    parameters: Sequence[float],
    temperature: float,
    alpha: float,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    with_gradient: bool,
    gradient_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    options = Options(
        objective, tuple(parameters), temperature, alpha, ignore_index, label_smoothing, reduction
    )
    return compute.linear_loss(
        (student_features, student_weight, student_bias),
        (teacher_features, teacher_weight, teacher_bias),
        chunk_rows,
        (labels, mask, weight),
        options,
        with_gradient,
        gradient_scale,
    )


@_distill_loss.register_fake
def _(student: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    objective, reduction, with_gradient = arguments[4], arguments[10], arguments[11]
    positions = (student.shape[0], *student.shape[2:])
    loss, agreement = compute.empty_result(student, positions, objective, reduction)
    return loss, agreement, compute.empty_gradient(student, with_gradient)


@_upsampled_distill_loss.register_fake
def _(student: Tensor, teacher: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    height, width, objective = arguments[0], arguments[1], arguments[6]
    reduction, with_gradient = arguments[12], arguments[13]
    positions = (student.shape[0], height, width)
    loss, agreement = compute.empty_result(student, positions, objective, reduction)
    return loss, agreement, compute.empty_gradient(student, with_gradient)


@_linear_distill_loss.register_fake
def _(
    features: Tensor, matrix: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    loss, agreement = compute.empty_result(features, (), "", "sum")
    return loss, agreement, *compute.empty_head_gradients(features, matrix, bias, arguments[14])


# --------------------------------------------------------------------------- the gradient


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[2:])
    ctx.packed = packs_saved_tensors()
    ctx.with_gradient, ctx.scale, ctx.inputs = inputs[-2], inputs[-1], len(inputs)
    # The objective stands nine places from the end in each of the operators.
    ctx.dtype, ctx.of_channels = inputs[0].dtype, inputs[-9] == "cwd"
    ctx.set_materialize_grads(False)


def _saved(ctx: Any) -> tuple[Tensor, ...]:
    if not ctx.with_gradient:
        raise RuntimeError("this operator was called with with_gradient=False: it kept no gradient")
    saved: tuple[Tensor, ...] = ctx.saved_tensors
    return saved


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        nothing: tuple[None, ...] = (None,) * ctx.inputs
        return nothing
    (gradient,) = _saved(ctx)
    others: tuple[None, ...] = (None,) * (ctx.inputs - 1)
    result = scaled(
        gradient,
        upstream,
        ctx.scale,
        ctx.dtype,
        of_channels=ctx.of_channels,
        owned=owned_by(ctx),
    )
    return result, *others


def _linear_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if upstream is None:
        nothing: tuple[None, ...] = (None,) * ctx.inputs
        return nothing
    found: list[Tensor | None] = []
    for k, gradient in enumerate(_saved(ctx)):
        wanted = ctx.needs_input_grad[k]
        # Weight and bias were summed in the accumulation dtype, without the scale.
        scale = ctx.scale if k == 0 else 1.0
        owned = owned_by(ctx)
        found.append(scaled(gradient, upstream, scale, ctx.dtype, owned=owned) if wanted else None)
    others: tuple[None, ...] = (None,) * (ctx.inputs - 3)
    return *found, *others


_distill_loss.register_autograd(_backward, setup_context=_setup)
_upsampled_distill_loss.register_autograd(_backward, setup_context=_setup)
_linear_distill_loss.register_autograd(_linear_backward, setup_context=_setup)


def evaluated(
    ctx: Any,
    student: Tensor,
    gradient: Tensor,
    others: tuple[Any, ...],
    options: Options,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Loss and agreement, the gradient filled, and what the backward pass wants to know of it."""
    teacher, labels, mask, weight = others[:4]
    loss, agreement = compute.logits_loss(
        student, teacher, (labels, mask, weight), options, gradient, scale
    )
    ctx.mark_non_differentiable(agreement)
    ctx.scale, ctx.dtype, ctx.of_channels = scale, student.dtype, options.objective == "cwd"
    ctx.set_materialize_grads(False)
    return loss, agreement


class Direct(torch.autograd.Function):
    """The operator without its layers of dispatch, where nothing but autograd looks."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, others: tuple[Any, ...], options: Options, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Loss and agreement; the gradient is kept for the backward pass."""
        gradient = recycled(compute.empty_gradient(student, True))
        ctx.save_for_backward(gradient)
        ctx.packed = packs_saved_tensors()
        return evaluated(ctx, student, gradient, others, options, scale)

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> Any:
        """The gradient that the forward pass made, scaled."""
        if upstreams[0] is None:
            return None, None, None, None
        (gradient,) = ctx.saved_tensors
        result = scaled(
            gradient,
            upstreams[0],
            ctx.scale,
            ctx.dtype,
            of_channels=ctx.of_channels,
            owned=owned_by(ctx),
        )
        return result, None, None, None
