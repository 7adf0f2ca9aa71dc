"""``raw_conv`` on the GPU by the hand-written kernels of csrc/cuda: what a call tells them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isp_distill.ops.raw_conv_operator import ACTIVATIONS, CURVES, Settings, Tensors

#: Beyond it a tile of the input no longer fits a block's shared memory.
LARGEST_KERNEL = 7

#: As the kernels number them (csrc/cuda/raw_conv_call.h, ``Sensor``).
SENSORS = (
    torch.uint8,
    torch.uint16,
    torch.int16,
    torch.int32,
    torch.float16,
    torch.float32,
)


def refuses(
    *, kernel: int, out_dtype: torch.dtype, weight: torch.dtype, **_: object
) -> str | None:
    """Why the CUDA kernels cannot serve a call, or None."""
    if torch.float64 in (weight, out_dtype):
        return "it computes in float32, and float64 was asked for"
    if kernel > LARGEST_KERNEL:
        return f"its kernels go up to {LARGEST_KERNEL} x {LARGEST_KERNEL}"
    return None


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(torch.float32).contiguous()


def laid_out(image: Tensor, settings: Settings) -> Tensor:
    """The output's gradient, as the output is laid out and in its type."""
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    return image.to(settings.out_dtype).contiguous(memory_format=layout)


def described(
    tensors: Tensors, settings: Settings, out: Tensor | None, grad: Tensor | None = None
) -> tuple[dict[str, Any], list[Tensor | None]]:
    """A call's numbers and addresses by name, and the tensors that have to live as long."""
    mosaic = tensors.mosaic if tensors.mosaic.stride(2) == 1 else tensors.mosaic.contiguous()
    black = tensors.black.detach().float().contiguous()
    scale = tensors.gain.detach().float() / (tensors.white.float()[:, None] - black)
    held = {
        "mosaic": mosaic,
        "pattern": tensors.pattern.contiguous(),
        "black": black,
        "scale": scale.contiguous(),
        "mix": _flat(tensors.mix),
        "gamma": _flat(tensors.gamma),
        "padding_value": _flat(tensors.padding_value),
        "weight": _flat(tensors.weight),
        "bias": _flat(tensors.bias),
        "out": out,
        "grad": grad,
    }
    left, right, top, bottom = settings.padding
    kernel = tensors.weight.shape[2]
    height, width = mosaic.shape[1] // 2, mosaic.shape[2] // 2
    call: dict[str, Any] = {name: 0 if t is None else t.data_ptr() for name, t in held.items()}
    call |= {
        "mosaic_sample": mosaic.stride(0),
        "mosaic_row": mosaic.stride(1),
        "batch": mosaic.shape[0],
        "height": height,
        "width": width,
        "channels": tensors.weight.shape[0],
        "kernel": kernel,
        "stride": settings.stride,
        "left": left,
        "top": top,
        "out_height": (height + top + bottom - kernel) // settings.stride + 1,
        "out_width": (width + left + right - kernel) // settings.stride + 1,
        "sensor": SENSORS.index(mosaic.dtype),
        "curve": CURVES.index(settings.curve),
        "activation": ACTIVATIONS.index(settings.activation),
        "clip": settings.clip,
        "channels_last": settings.channels_last,
        "bytes": settings.out_dtype.itemsize,
        "bfloat16": settings.out_dtype == torch.bfloat16,
    }
    return call, list(held.values())
