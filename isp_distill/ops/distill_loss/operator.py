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
from torch.autograd import forward_ad

from isp_distill.backends.output_memory import recycled
from isp_distill.ops.distill_loss import backend as compute
from isp_distill.ops.distill_loss import cpu as _distill_cpu  # noqa: F401  (registers a backend)
from isp_distill.ops.distill_loss import cuda as _distill_cuda  # noqa: F401  (likewise)
from isp_distill.ops.distill_loss import triton as _distill_triton  # noqa: F401  (likewise)
from isp_distill.ops.distill_loss.options import Options


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


class _NoSecondDerivative(torch.autograd.Function):
    """A gradient that says why it has none of its own."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, upstream: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "distill_loss computes its gradient in the forward pass: it has no second derivative"
        )


def scaled(
    gradient: Tensor,
    upstream: Tensor,
    scale: float,
    dtype: torch.dtype,
    *,
    of_channels: bool = False,
    owned: bool = False,
) -> Tensor:
    """``gradient * upstream / scale``, into the gradient's own memory where nobody else sees it.

    ``of_channels``: the loss of ``reduction="none"`` had a value per channel ``[N, C]``, not per
    position ``[N, ...]``. ``owned``: nobody else holds the gradient or asks for it again.
    """
    if upstream.dim() > 0 and of_channels:
        upstream = upstream.reshape(*upstream.shape, *[1] * (gradient.dim() - upstream.dim()))
    elif upstream.dim() > 0:
        upstream = upstream.unsqueeze(1)
    create_graph = torch.is_grad_enabled()
    factor = upstream.detach() if create_graph else upstream
    factor = factor if scale == 1.0 else factor / scale
    owned = (
        owned
        and type(gradient) is type(upstream) is Tensor
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._dispatch_keys(upstream).has(_BATCHED)
    )
    if owned and factor.dim() == 0 and factor.device.type == "cpu" and float(factor) == 1.0:
        result = gradient.to(dtype)
    elif owned and gradient.dtype == dtype:
        result = gradient.mul_(factor)
    else:
        result = (gradient * factor).to(dtype)
    if create_graph:
        gate = upstream if upstream.requires_grad else upstream.detach().requires_grad_()
        result = _NoSecondDerivative.apply(result, gate)
    return result


#: What ``torch.autograd.grad(is_grads_batched=True)`` hands to a backward pass.
_BATCHED: Any = torch._C._parse_dispatch_key("Batched")


def _graph_is_kept() -> bool:
    """Whether the running backward may be asked for again (``retain_graph=True``)."""
    # Private, but what torch's own AOTAutograd asks before it donates buffers.
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return bool(keeps()) if keeps is not None else True


def _packs_saved_tensors() -> bool:
    """Whether ``saved_tensors_hooks`` are on: what is saved now is then somebody else's as well."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return hooks is None or hooks(True) is not None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[2:])
    ctx.packed = _packs_saved_tensors()
    ctx.with_gradient, ctx.scale, ctx.inputs = inputs[-2], inputs[-1], len(inputs)
    # The objective stands nine places from the end in each of the operators.
    ctx.dtype, ctx.of_channels = inputs[0].dtype, inputs[-9] == "cwd"
    ctx.set_materialize_grads(False)


def _owned(ctx: Any) -> bool:
    """Whether the saved gradient is this backward's own: to be changed, and to be handed out."""
    return not (ctx.packed or torch.compiler.is_compiling() or _graph_is_kept())


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
        owned=_owned(ctx),
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
        owned = _owned(ctx)
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
        ctx.packed = _packs_saved_tensors()
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
            owned=_owned(ctx),
        )
        return result, None, None, None


def is_transformed(*tensors: Tensor | None) -> bool:
    """Whether a derivative beyond the one that the kernels make is asked of one of these tensors.

    A transform of ``torch.func`` (grad, jvp, vmap and what is made of them) is at work, or a tensor
    has a tangent of forward-mode differentiation.
    """
    if torch.compiler.is_compiling():
        return False
    interpreter: Any = torch._C._functorch.peek_interpreter_stack()
    if interpreter is not None:
        return bool(interpreter.key() != torch._C._functorch.TransformType.Functionalize)
    if forward_ad._current_level < 0:
        return False
    unpack: Any = forward_ad.unpack_dual
    return any(x is not None and unpack(x).tangent is not None for x in tensors)
