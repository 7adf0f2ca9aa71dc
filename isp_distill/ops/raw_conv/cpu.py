"""``raw_conv`` on the CPU: hands the operator's tensors to the compiled kernels (csrc/cpu)."""

from __future__ import annotations

import torch
from torch import Tensor

from isp_distill.backends import choice, cpu_library
from isp_distill.backends.kernel_arguments import floats, plain
from isp_distill.backends.output_memory import recycled
from isp_distill.ops.raw_conv.operator import (
    ACTIVATIONS,
    CURVES,
    Functions,
    Needs,
    Settings,
    Tensors,
    output_like,
)
from isp_distill.raw.packings import packing_number

#: Beyond it the strip of rows no longer fits a cache, and a reference convolution is as fast.
LARGEST_KERNEL = 32


def refuses(
    *,
    kernel: int,
    out_dtype: torch.dtype,
    weight: torch.dtype,
    only_reference: str | None = None,
    **_: object,
) -> str | None:
    """Why the compiled kernels cannot serve a call, or None."""
    if only_reference:
        return only_reference
    if weight == torch.float64 or out_dtype == torch.float64:
        return "it computes in float32, and float64 was asked for"
    if kernel > LARGEST_KERNEL:
        return f"its kernels go up to {LARGEST_KERNEL} x {LARGEST_KERNEL}"
    return None


def _arguments(tensors: Tensors, settings: Settings) -> tuple[object, ...]:
    mosaic = tensors.mosaic if tensors.mosaic.stride(2) == 1 else tensors.mosaic.contiguous()
    return (
        mosaic,
        plain(tensors.weight),
        plain(tensors.bias),
        # These go as they lie, spread over the batch or not: the library reads their strides.
        floats(tensors.black),
        floats(tensors.white),
        tensors.pattern,
        floats(tensors.gain),
        floats(tensors.padding_value),
        floats(tensors.mix),
        floats(tensors.gamma),
        plain(tensors.linearise),
        settings.stride,
        *settings.padding,
        settings.clip,
        CURVES.index(settings.curve),
        ACTIVATIONS.index(settings.activation),
        packing_number(settings.packing),
        settings.pixels(mosaic),
    )


def forward(tensors: Tensors, settings: Settings) -> Tensor:
    """The output, ``[N, C, h, w]``."""
    out = recycled(output_like(tensors.mosaic, tensors.weight, settings))
    torch.ops.isp_distill_cpu.raw_conv_forward(*_arguments(tensors, settings), out)
    return out


def backward(
    grad: Tensor, out: Tensor | None, tensors: Tensors, settings: Settings, needs: Needs
) -> tuple[Tensor | None, ...]:
    """The gradients of weight, bias, gain, mix and gamma in float32; None where not needed."""
    batch, channels = tensors.mosaic.shape[0], tensors.weight.shape[0]
    shapes = (tensors.weight.shape, (channels,), (batch, 4), (batch, 4, 4), ())
    gradients = tuple(
        torch.empty(shape, dtype=torch.float32) if needed else None
        for shape, needed in zip(shapes, needs, strict=True)
    )
    if grad.dtype == torch.float64:
        grad = grad.float()
    torch.ops.isp_distill_cpu.raw_conv_backward(
        grad, out, *_arguments(tensors, settings), *gradients
    )
    return gradients


choice.register(
    choice.Implementation(
        "raw_conv",
        "cpu",
        Functions(forward, backward),
        devices=("cpu",),
        missing=cpu_library.missing,
        refuses=refuses,
    )
)
