"""``isp_distill::raw_conv``: the torch operator that every compiled backend of ``raw_conv`` shares.

Schema, shapes, autograd and what is saved are written once, here. A backend is a pair of functions
(:class:`Functions`), registered with :mod:`isp_distill.backends.choice`, and is named in the
operator's arguments, so that the backward pass is served by the one that served the forward pass.
The reference is not behind this operator: it is plain PyTorch already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isp_distill.backends import choice
from isp_distill.errors import BackendError

CURVES = ("linear", "sqrt", "log", "gamma")
ACTIVATIONS = ("none", "relu", "relu6", "silu", "gelu")


class Tensors(NamedTuple):
    """The tensors of a call, in the operator's order; shapes as in :func:`isp_distill.raw_conv`."""

    mosaic: Tensor  # [N, H, W]; [N, H, bytes] where it is packed
    weight: Tensor  # [C, 4, K, K]
    bias: Tensor | None  # [C]
    black: Tensor  # [N, 4]
    white: Tensor  # [N]
    pattern: Tensor  # [N] int64
    gain: Tensor  # [N, 4]
    padding_value: Tensor | None  # [4]
    mix: Tensor | None  # [N, 4, 4]
    gamma: Tensor | None  # []
    linearise: Tensor | None = None  # [N, L] or [1, L]: the linear values of codes


class Settings(NamedTuple):
    """The rest of a call, in the operator's order."""

    stride: int
    padding: Sequence[int]  # left, right, top, bottom
    clip: bool
    curve: str
    activation: str
    out_dtype: torch.dtype
    channels_last: bool
    packing: str | None = None
    width: int | None = None  # pixels of a row, where packed

    def pixels(self, mosaic: Tensor) -> int:
        """How many pixels a row of the mosaic has."""
        return mosaic.shape[2] if self.width is None else self.width


class Needs(NamedTuple):
    """Which gradients are asked for."""

    weight: bool
    bias: bool
    gain: bool
    mix: bool
    gamma: bool


@dataclass(frozen=True)
class Functions:
    """What a compiled backend provides.

    Attributes:
        forward: ``(tensors, settings) -> out``, laid out as :func:`output_like` says. On the CPU
            black, white, pattern, gain, mix and padding_value may also be one sample's.
        backward: ``(grad, out, tensors, settings, needs) -> (weight, bias, gain, mix, gamma)``,
            float32 or the tensor's own dtype, None where ``needs`` says no. ``grad`` has any
            strides. ``out`` is given where it was saved (see :func:`_saves_output`), else None.
    """

    forward: Callable[[Tensors, Settings], Tensor]
    backward: Callable[[Tensor, Tensor | None, Tensors, Settings, Needs], tuple[Tensor | None, ...]]


_TENSORS = (
    "Tensor mosaic, Tensor weight, Tensor? bias, Tensor black, Tensor white, Tensor pattern, "
    "Tensor gain, Tensor? padding_value, Tensor? mix, Tensor? gamma, Tensor? linearise"
)
_SETTINGS = (
    "int stride, SymInt[] padding, bool clip, str curve, str activation, ScalarType out_dtype, "
    "bool channels_last, str? packing, SymInt? width, str backend"
)
_COUNT = len(Tensors._fields)


def output_like(mosaic: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """An empty tensor of the output's shape, type and layout."""
    left, right, top, bottom = settings.padding
    kernel = weight.shape[2]
    height = (mosaic.shape[1] // 2 + top + bottom - kernel) // settings.stride + 1
    width = (settings.pixels(mosaic) // 2 + left + right - kernel) // settings.stride + 1
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    return torch.empty(
        (mosaic.shape[0], weight.shape[0], height, width),
        dtype=settings.out_dtype,
        device=mosaic.device,
        memory_format=layout,
    )


def functions_of(name: str) -> Functions:
    """What a compiled backend registered.

    Raises:
        BackendError: there is nothing.
    """
    implementation = choice.registered("raw_conv", name)
    if implementation is None or not isinstance(implementation.functions, Functions):
        raise BackendError(f"backend {name!r} has no compiled raw_conv")
    return implementation.functions


@torch.library.custom_op(
    "isp_distill::raw_conv", mutates_args=(), schema=f"({_TENSORS}, {_SETTINGS}) -> Tensor"
)
def raw_conv(*arguments: Any) -> Tensor:
    """Forward, by the backend that the last argument names."""
    *rest, name = arguments
    return functions_of(name).forward(Tensors(*rest[:_COUNT]), Settings(*rest[_COUNT:]))


@raw_conv.register_fake
def _(*arguments: Any) -> Tensor:
    *rest, _ = arguments
    return output_like(rest[0], rest[1], Settings(*rest[_COUNT:]))


@torch.library.custom_op(
    "isp_distill::raw_conv_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor? out, {_TENSORS}, {_SETTINGS}, bool[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def raw_conv_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients of weight, bias, gain, mix and gamma; empty tensors where not needed."""
    grad, out, *rest, name, needs = arguments
    tensors, settings = Tensors(*rest[:_COUNT]), Settings(*rest[_COUNT:])
    gradients = functions_of(name).backward(grad, out, tensors, settings, Needs(*needs))
    results = []
    for gradient, like in zip(gradients, _parameters(tensors), strict=True):
        if gradient is None or like is None:
            results.append(grad.new_empty(0))
        else:
            results.append(gradient.to(like.dtype).reshape(like.shape))
    return tuple(results)


@raw_conv_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    grad, _, *rest, _, needs = arguments
    parameters = _parameters(Tensors(*rest[:_COUNT]))
    return tuple(
        grad.new_empty(like.shape, dtype=like.dtype)
        if needed and like is not None
        else grad.new_empty(0)
        for like, needed in zip(parameters, needs, strict=True)
    )


def _parameters(tensors: Tensors) -> tuple[Tensor | None, ...]:
    return tensors.weight, tensors.bias, tensors.gain, tensors.mix, tensors.gamma


def _saves_output(settings: Settings) -> bool:
    """Whether the output tells the activation's derivative; otherwise it is computed again.

    A result that was rounded to 16 bits can no longer tell whether relu6 cut it off.
    """
    return settings.activation == "relu" or (
        settings.activation == "relu6" and settings.out_dtype == torch.float32
    )


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save what the backward pass reads: the operator's arguments, the output where it tells."""
    ctx.settings = Settings(*inputs[_COUNT:-1])
    ctx.backend = inputs[-1]
    ctx.save_for_backward(*inputs[:_COUNT], output if _saves_output(ctx.settings) else None)


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of each of the operator's arguments; None where there is none, or no need."""
    *saved, out = ctx.saved_tensors
    at = [Tensors._fields.index(name) for name in Needs._fields]
    needs = [bool(ctx.needs_input_grad[i]) and saved[i] is not None for i in at]
    gradients = raw_conv_backward(grad, out, *saved, *ctx.settings, ctx.backend, needs)
    results: list[Tensor | None] = [None] * (_COUNT + len(Settings._fields) + 1)
    for i, needed, gradient in zip(at, needs, gradients, strict=True):
        if needed:
            results[i] = gradient
    return tuple(results)


raw_conv.register_autograd(backward, setup_context=setup_context)


def _second_backward(ctx: Any, *grads: Tensor) -> None:
    raise BackendError(
        "the kernels of raw_conv have no second derivative: compute it inside "
        'isp_distill.use_backend("reference")'
    )


raw_conv_backward.register_autograd(_second_backward)
