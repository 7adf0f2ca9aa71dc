"""The distillation loss whose gradient takes the place of the student's logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isp_distill.ops.distill_loss.operator import evaluated
from isp_distill.ops.distill_loss.options import Options
from isp_distill.ops.stored_gradient import scaled


def check_may_overwrite(student: Tensor, others: tuple[Any, ...]) -> None:
    """Whether the gradient may take the place of these logits; ``others`` are the call's tensors.

    Raises:
        RuntimeError: if they are a leaf or a view of one, may overlap themselves, are negated only
            by their view, or share memory with another tensor of the call.
    """
    if student.is_leaf:
        raise RuntimeError(
            "inplace_grad overwrites the logits, but these are a leaf, which needs its values"
        )
    base = student._base
    if base is not None and base.is_leaf:
        raise RuntimeError(
            "inplace_grad overwrites the logits, but these are a view of a leaf, which needs its "
            "values: clone()"
        )
    if student.is_neg():
        raise RuntimeError("inplace_grad cannot overwrite a negated view: give resolve_neg() of it")
    if not student.is_contiguous() and _may_overlap(student):
        raise RuntimeError(
            f"inplace_grad cannot overwrite logits of strides {student.stride()}, which may "
            "overlap themselves: clone()"
        )
    first, end = _bytes(student)
    for name, tensor in zip(("teacher", "labels", "mask", "weight"), others, strict=False):
        if tensor is None:
            continue
        other_first, other_end = _bytes(tensor)
        if first < other_end and other_first < end:
            raise RuntimeError(
                f"inplace_grad overwrites the logits, but {name} lies in the same memory: clone() "
                "one of the two"
            )


def _may_overlap(tensor: Tensor) -> bool:
    """Whether two elements may share memory: no, where each stride steps over all smaller ones."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False


def _bytes(tensor: Tensor) -> tuple[int, int]:
    """Addresses of a tensor's first byte and of the one behind its last."""
    size, first = tensor.element_size(), tensor.data_ptr()
    if tensor.is_contiguous():
        return first, first + tensor.numel() * size
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * size


class InPlace(torch.autograd.Function):
    """As :class:`isp_distill.ops.distill_loss.operator.Direct`, in the student's memory.

    The logits' version counter moves, so that autograd itself reports an earlier operation that
    saved them for its backward, and this one a later change of the gradient. The gradient is no
    saved tensor: hooks that pack those would copy what is to stay in its place.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, others: tuple[Any, ...], options: Options, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Loss and agreement; the student's memory holds the gradient from here on."""
        gradient = student.detach()
        result = evaluated(ctx, gradient, gradient, others, options, scale)
        torch.autograd.graph.increment_version(gradient)
        ctx.gradient, ctx.version = gradient, gradient._version
        return result

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> Any:
        """Hands the gradient out, once."""
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("inplace_grad: this gradient was already handed out by a backward")
        if gradient._version != ctx.version:
            raise RuntimeError(
                "inplace_grad: the logits' memory holds the gradient and was changed after the "
                "loss: leave it alone until the backward pass, or give inplace_grad=False"
            )
        if upstreams[0] is None:
            return None, None, None, None
        result = scaled(
            gradient,
            upstreams[0],
            ctx.scale,
            ctx.dtype,
            of_channels=ctx.of_channels,
            owned=True,
        )
        return result, None, None, None
