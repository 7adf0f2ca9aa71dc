"""The operator behind the feature loss, and its autograd rule.

The forward computes the gradient beside the loss; the backward only scales it by the upstream
scalar (``stored_gradient.py``). At a grid of its own (``size``) a value for each row has no
gradient: it would need a factor for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isp_distill.backends.output_memory import recycled
from isp_distill.ops.distill_loss.backend import empty_gradient
from isp_distill.ops.feature_loss import backend as compute
from isp_distill.ops.feature_loss import cpu as _feature_cpu  # noqa: F401  (registers a backend)
from isp_distill.ops.feature_loss import triton as _feature_triton  # noqa: F401  (likewise)
from isp_distill.ops.feature_loss.options import Options
from isp_distill.ops.stored_gradient import owned_by, packs_saved_tensors, scaled


@torch.library.custom_op("isp_distill::feature_loss", mutates_args=())
def _feature_loss(
    student: Tensor,
    teacher: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    objective: str,
    parameters: Sequence[float],
    normalise: str,
    reduction: str,
    size: Sequence[int],
    with_gradient: bool,
    gradient_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    options = Options(objective, tuple(parameters), normalise, reduction)
    gradient = recycled(empty_gradient(student, with_gradient))
    loss, similarity = compute.feature_loss(
        student,
        teacher,
        (mean, std, mask, weight),
        options,
        compute.grid_of(size),
        gradient if with_gradient else None,
        gradient_scale,
    )
    return loss, similarity, gradient


@_feature_loss.register_fake
def _(student: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    reduction, size, with_gradient = arguments[8:11]
    positions = (student.shape[0], *(size or student.shape[2:]))
    loss, similarity = compute.empty_result(student, positions, reduction)
    return loss, similarity, empty_gradient(student, with_gradient)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[2])
    ctx.packed = packs_saved_tensors()
    ctx.with_gradient, ctx.scale, ctx.inputs = inputs[-2], inputs[-1], len(inputs)
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    others: tuple[None, ...] = (None,) * (ctx.inputs - 1)
    if upstream is None:
        return None, *others
    if not ctx.with_gradient:
        raise RuntimeError("this operator was called with with_gradient=False: it kept no gradient")
    (gradient,) = ctx.saved_tensors
    return scaled(gradient, upstream, ctx.scale, ctx.dtype, owned=owned_by(ctx)), *others


_feature_loss.register_autograd(_backward, setup_context=_setup)


class Direct(torch.autograd.Function):
    """The operator without its layers of dispatch, where nothing but autograd looks."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        others: compute.Others,
        options: Options,
        grid: compute.Grid,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Loss and mean cosine; the gradient is kept for the backward pass."""
        gradient = recycled(empty_gradient(student, True))
        ctx.save_for_backward(gradient)
        ctx.packed = packs_saved_tensors()
        loss, similarity = compute.feature_loss(
            student, teacher, others, options, grid, gradient, scale
        )
        ctx.mark_non_differentiable(similarity)
        ctx.scale, ctx.dtype = scale, student.dtype
        ctx.set_materialize_grads(False)
        return loss, similarity

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> Any:
        """The gradient that the forward pass made, scaled."""
        if upstreams[0] is None:
            return None, None, None, None, None, None
        (gradient,) = ctx.saved_tensors
        result = scaled(gradient, upstreams[0], ctx.scale, ctx.dtype, owned=owned_by(ctx))
        return result, None, None, None, None, None
