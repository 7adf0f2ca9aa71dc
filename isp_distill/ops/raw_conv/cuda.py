"""``raw_conv`` on the GPU by the hand-written kernels of csrc/cuda: what a call tells them.

They have the gradients of weight and bias; a call that asks for one of gain, mix or gamma is served
by :mod:`isp_distill.ops.raw_conv.triton`. NaN at an edge of the mosaic reaches the gradients of all
positions of the kernel, of those that do not read it too. Nothing waits for the GPU, and nothing is
allocated but results and the sums of each block, so that a CUDA graph can hold a call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isp_distill.backends import choice, cuda_library
from isp_distill.backends.kernel_arguments import plain
from isp_distill.errors import BackendError
from isp_distill.ops.raw_conv.operator import (
    ACTIVATIONS,
    CURVES,
    Functions,
    Needs,
    Settings,
    Tensors,
    output_like,
)
from isp_distill.raw.packings import packing_number, row_bytes

#: Beyond it a tile of the input no longer fits a block's shared memory.
LARGEST_KERNEL = 7

#: As the kernels number them (csrc/cuda/raw_conv/call.h, ``Sensor``).
SENSORS = (
    torch.uint8,
    torch.uint16,
    torch.int16,
    torch.int32,
    torch.float16,
    torch.float32,
)


#: Bytes of shared memory that every GPU from sm_80 on gives a block, and what a tile's output has.
SHARED_BYTES = 99 * 1024
_ROWS, _COLUMNS = 8, 32


def shared_bytes(
    kernel: int, stride: int, mosaic: torch.dtype, out: torch.dtype, packing: str | None = None
) -> int:
    """What a block of the forward or the backward pass needs at least, whichever needs more.

    As ``forward_layout`` and ``backward_layout`` of csrc/cuda/raw_conv/call.h have it, with the
    fewest channels (32).
    """
    rows, columns = ((n - 1) * stride + kernel for n in (_ROWS, _COLUMNS))
    row = 2 * columns * mosaic.itemsize
    if packing is not None:  # a row may begin in the middle of a group
        row = row_bytes(2 * columns + 2, packing)
    raw = 2 * rows * _rounded(row + 15, 16)
    area, size = kernel * kernel, out.itemsize
    positions = _rounded(area, 4)
    forward = _rounded(4 * size * rows * columns, 16) + _rounded(4 * positions, 16)
    forward += 4 * size * positions * 32 + 8 * size * _COLUMNS * 24
    groups = (area + 8) // 8
    words = rows if size == 4 else (_ROWS // 2 - 1) * min(kernel, 2 * stride) + kernel
    backward = 16 * words * columns + 32 * groups + 4 * (_ROWS * _COLUMNS * size // 4 + 4) * 32
    return raw + max(forward, backward)


def _rounded(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def refuses(
    *,
    kernel: int,
    stride: int,
    mosaic: torch.dtype,
    out_dtype: torch.dtype,
    weight: torch.dtype,
    activation: str,
    learnt: bool,
    colour: bool,
    only_reference: str | None = None,
    packing: str | None = None,
    **_: object,
) -> str | None:
    """Why the CUDA kernels cannot serve a call, or None."""
    if only_reference:
        return only_reference
    if torch.float64 in (weight, out_dtype, mosaic):
        return "it computes in float32, and float64 was asked for"
    if colour:
        return "it has no gradient of gain, mix and gamma"
    if learnt and (
        activation in ("silu", "gelu") or (activation == "relu6" and out_dtype != torch.float32)
    ):
        return f"its backward pass cannot tell the derivative of {activation} from the output"
    if kernel > LARGEST_KERNEL:
        return f"its kernels go up to {LARGEST_KERNEL} x {LARGEST_KERNEL}"
    needed = shared_bytes(kernel, stride, mosaic, out_dtype, packing)
    if needed > SHARED_BYTES:
        return (
            f"a tile at stride {stride} of {packing or mosaic} takes {needed // 1024} KiB of "
            f"shared memory, more than {SHARED_BYTES // 1024}"
        )
    return None


def laid_out(image: Tensor, settings: Settings) -> Tensor:
    """The output's gradient, as the output is laid out and in its type."""
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    return image.to(settings.out_dtype).contiguous(memory_format=layout)


def operands(tensors: Tensors) -> dict[str, Tensor | None]:
    """The tensors by name, as the kernels read them: the numbers contiguous and float32."""
    black = tensors.black.detach().float().contiguous()
    scale = tensors.gain.detach().float() / (tensors.white.float()[:, None] - black)
    mosaic = tensors.mosaic
    return {
        "mosaic": mosaic if mosaic.stride(2) == 1 else mosaic.contiguous(),
        "weight": plain(tensors.weight),
        "bias": plain(tensors.bias),
        "black": black,
        "scale": scale.contiguous(),
        "pattern": tensors.pattern.contiguous(),
        "padding_value": plain(tensors.padding_value),
        "mix": plain(tensors.mix),
        "gamma": plain(tensors.gamma),
        "linearise": plain(tensors.linearise),
    }


def described(
    tensors: Tensors, settings: Settings, out: Tensor | None, grad: Tensor | None = None
) -> tuple[dict[str, Any], list[Tensor | None]]:
    """A call's numbers and addresses by name, and the tensors that have to live as long."""
    held = operands(tensors) | {"out": out, "grad": grad}
    mosaic = held["mosaic"]
    assert mosaic is not None
    left, right, top, bottom = settings.padding
    kernel = tensors.weight.shape[2]
    height, width = mosaic.shape[1] // 2, settings.pixels(mosaic) // 2
    table = held["linearise"]
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
        "packing": packing_number(settings.packing),
        "table_step": 0 if table is None or table.shape[0] == 1 else table.shape[1],
        "last_code": 0 if table is None else table.shape[1] - 1,
        "curve": CURVES.index(settings.curve),
        "activation": ACTIVATIONS.index(settings.activation),
        "clip": settings.clip,
        "channels_last": settings.channels_last,
        "bytes": settings.out_dtype.itemsize,
        "bfloat16": settings.out_dtype == torch.bfloat16,
    }
    return call, list(held.values())


def _arguments(tensors: Tensors, settings: Settings) -> tuple[object, ...]:
    """What both operators of csrc/cuda/raw_conv/call.cu begin with."""
    return (
        *operands(tensors).values(),
        settings.stride,
        *settings.padding,
        settings.clip,
        CURVES.index(settings.curve),
        ACTIVATIONS.index(settings.activation),
        settings.channels_last,
        packing_number(settings.packing),
        settings.pixels(tensors.mosaic),
    )


def forward(tensors: Tensors, settings: Settings) -> Tensor:
    """The output, ``[N, C, h, w]``."""
    out = output_like(tensors.mosaic, tensors.weight, settings)
    torch.ops.isp_distill_cuda.raw_conv_forward(*_arguments(tensors, settings), out)
    return out


def backward(
    grad: Tensor, out: Tensor | None, tensors: Tensors, settings: Settings, needs: Needs
) -> tuple[Tensor | None, ...]:
    """The gradients of weight and bias in float32; None where not needed.

    Raises:
        BackendError: if one of gain, mix or gamma is asked for, which :func:`refuses` rules out.
    """
    if needs.gain or needs.mix or needs.gamma:
        raise BackendError("backend 'cuda' of raw_conv has no gradient of gain, mix and gamma")
    of_weight = grad.new_empty(tensors.weight.shape, dtype=torch.float32)
    of_bias = grad.new_empty(len(tensors.weight), dtype=torch.float32)
    torch.ops.isp_distill_cuda.raw_conv_backward(
        *_arguments(tensors, settings), laid_out(grad, settings), out, of_weight, of_bias
    )
    return of_weight if needs.weight else None, of_bias if needs.bias else None, None, None, None


choice.register(
    choice.Implementation(
        "raw_conv",
        "cuda",
        Functions(forward, backward),
        devices=("cuda",),
        missing=cuda_library.missing,
        refuses=refuses,
    )
)
