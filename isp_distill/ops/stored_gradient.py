"""The gradient of a loss that its forward pass computed: kept, scaled by the upstream, handed out.

What the losses share. Their forward writes the gradient beside the value; the backward multiplies
it by the upstream scalar, in the gradient's own memory where nobody else can see that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


class _NoSecondDerivative(torch.autograd.Function):
    """A gradient that says why it has none of its own."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, upstream: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            "this loss computes its gradient in the forward pass: it has no second derivative by "
            "backward passes (by torch.func it does)"
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


def gradient_scale(student: Tensor, rows: int, reduction: str, resized: bool = False) -> float:
    """What the stored gradient is multiplied by, so that float16 holds it; a power of two.

    The forward does not know the upstream factor, and with it a loss scaler's. A mean over a
    million rows would underflow before it came. ``resized``: the rows are positions of another
    resolution than the student's ``[N, C, h, w]``, and each of its elements gathers the gradients
    of many of them: scaled by their number it would overflow.
    """
    if student.dtype != torch.float16 or reduction in ("sum", "none"):
        return 1.0
    if reduction == "batchmean":
        rows = 1 if resized else student.shape[0]
    elif resized:
        rows = min(rows, student.numel() // student.shape[1])
    return float(2 ** (rows.bit_length() - 1))


def _graph_is_kept() -> bool:
    """Whether the running backward may be asked for again (``retain_graph=True``)."""
    # Private, but what torch's own AOTAutograd asks before it donates buffers.
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return bool(keeps()) if keeps is not None else True


def packs_saved_tensors() -> bool:
    """Whether ``saved_tensors_hooks`` are on: what is saved now is then somebody else's as well."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return hooks is None or hooks(True) is not None


def owned_by(ctx: Any) -> bool:
    """Whether the saved gradient is this backward's own: to be changed, and to be handed out."""
    return not (ctx.packed or torch.compiler.is_compiling() or _graph_is_kept())


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


@contextlib.contextmanager
def autograd_inside_operator() -> Iterator[None]:
    """Record gradients inside an operator's implementation, where torch has switched that off."""
    keys = [torch._C.DispatchKey.AutogradCPU, torch._C.DispatchKey.AutogradCUDA]
    keys += [torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView]
    excluded = [torch._C._dispatch_tls_is_dispatch_key_excluded(key) for key in keys]
    for key in keys:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for key, was in zip(keys, excluded, strict=True):
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, was)


def reference_with_gradient(
    student: Tensor,
    loss_of: Callable[[Tensor], tuple[Tensor, Tensor]],
    gradient: Tensor | None,
    gradient_scale: float,
) -> tuple[Tensor, Tensor]:
    """A loss by the reference; fills ``gradient``, as a fused backend does.

    Args:
        student: what the loss is differentiated in.
        loss_of: the loss of such a tensor, and what is counted beside it.
        gradient: filled, if given, with ``gradient_scale`` times the derivative of the summed loss.
        gradient_scale: see there.
    """
    with autograd_inside_operator():
        leaf = student.detach().requires_grad_(gradient is not None)
        loss, counted = loss_of(leaf)
        found = None
        if gradient is not None:
            (found,) = torch.autograd.grad(loss.sum() * gradient_scale, leaf)
    if gradient is not None and found is not None:
        gradient.copy_(found)
    return loss.detach(), counted.detach()
