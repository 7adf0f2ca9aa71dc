"""``raw_conv`` on the GPU: hands the operator's tensors to the Triton kernels (``kernels/``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isp_distill.backends import choice, triton_support
from isp_distill.backends.kernel_arguments import plain
from isp_distill.ops.mosaic_triton import read
from isp_distill.ops.raw_conv.operator import Functions, Needs, Settings, Tensors, output_like

#: The positions of a kernel are unrolled in the machine code.
LARGEST_KERNEL = 16
#: What a GPU takes along the second and third axis of a grid.
LARGEST_BATCH = 65535


def refuses(
    *,
    kernel: int,
    out_dtype: torch.dtype,
    weight: torch.dtype,
    batch: int,
    only_reference: str | None = None,
    **_: object,
) -> str | None:
    """Why the Triton kernels cannot serve a call, or None."""
    if only_reference:
        return only_reference
    if weight == torch.float64 or out_dtype == torch.float64:
        return "it computes in float32, and float64 was asked for"
    if kernel > LARGEST_KERNEL:
        return f"its kernels go up to {LARGEST_KERNEL} x {LARGEST_KERNEL}"
    if batch > LARGEST_BATCH:
        return f"its kernels take up to {LARGEST_BATCH} samples at once"
    return None


def _call(tensors: Tensors, settings: Settings) -> dict[str, Any]:
    """The kernels' arguments by name, without those of output and gradient."""
    channels, _, kernel, _ = tensors.weight.shape
    left, right, top, bottom = settings.padding
    height, width = tensors.mosaic.shape[1] // 2, settings.pixels(tensors.mosaic) // 2
    out_height = (height + top + bottom - kernel) // settings.stride + 1
    out_width = (width + left + right - kernel) // settings.stride + 1
    black = plain(tensors.black)
    scale = tensors.gain.detach().float() / (tensors.white.float()[:, None] - black)
    # A pointer is an argument whether or not anything is read through it.
    absent = black
    return {
        **read(tensors.mosaic, settings.packing, tensors.linearise, absent),
        "weight": plain(tensors.weight),
        "bias": absent if tensors.bias is None else plain(tensors.bias),
        "black": black,
        "scale": scale.contiguous(),
        "mix": absent if tensors.mix is None else plain(tensors.mix),
        "gamma_ptr": absent if tensors.gamma is None else plain(tensors.gamma),
        "padding_value": absent if tensors.padding_value is None else plain(tensors.padding_value),
        "patterns": tensors.pattern.contiguous(),
        "channels": channels,
        "positions": kernel * kernel,
        "height": height,
        "width": width,
        "left": left,
        "top": top,
        "out_width": out_width,
        "out_pixels": out_height * out_width,
        "KERNEL": kernel,
        "STRIDE": settings.stride,
        "CLIP": settings.clip,
        "MIX": tensors.mix is not None,
        "CURVE": settings.curve,
        "PADDED": tensors.padding_value is not None,
        "BIAS": tensors.bias is not None,
        "ACTIVATION": settings.activation,
    } | _multiplication(channels, settings.out_dtype)


def _multiplication(channels: int, out_dtype: torch.dtype) -> dict[str, Any]:
    """In what type, and in blocks of what size, weight and planes are multiplied."""
    import triton
    import triton.language as tl

    from isp_distill.kernels.raw_conv.forward import BLOCK_POSITIONS

    operand = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(out_dtype, tl.float32)
    if operand == tl.bfloat16 and triton_support.interpreted():
        operand = tl.float32  # the interpreter would multiply the bits of bfloat16 as integers
    # Few enough channels that the accumulators leave room for four planes, see
    # forward_configurations.
    most = 32 if out_dtype == torch.float32 else 64
    return {
        "OPERAND": operand,
        # Three TensorFloat-32 products keep float32's accuracy: one alone would keep 10 bits of a
        # sensor's 12 to 14. The kernels wait for memory, so it costs little.
        "PRECISION": "tf32x3" if operand == tl.float32 else "ieee",
        "BLOCK_CHANNELS": min(most, max(16, triton.next_power_of_2(channels))),
        "BLOCK_POSITIONS": BLOCK_POSITIONS,
    }


def forward(tensors: Tensors, settings: Settings) -> Tensor:
    """The output, ``[N, C, h, w]``."""
    from isp_distill.kernels.raw_conv.forward import launch_forward

    out = output_like(tensors.mosaic, tensors.weight, settings)
    launch_forward(_call(tensors, settings), out)
    return out


def backward(
    grad: Tensor, out: Tensor | None, tensors: Tensors, settings: Settings, needs: Needs
) -> tuple[Tensor | None, ...]:
    """The gradients of weight, bias, gain, mix and gamma in float32; None where not needed."""
    from isp_distill.kernels.raw_conv.backward import launch_colour, launch_weight

    call = _call(tensors, settings)
    of_weight = of_bias = of_gain = of_mix = of_gamma = None
    if needs.weight or needs.bias:
        of_weight, of_bias = launch_weight(call, grad, out)
    if needs.gain or needs.mix or needs.gamma:
        unit = 1.0 / (tensors.white.float()[:, None] - call["black"])
        of_gain, of_mix, of_gamma = launch_colour(call, unit.contiguous(), grad, out)
    found = (of_weight, of_bias, of_gain, of_mix, of_gamma)
    return tuple(g if needed else None for g, needed in zip(found, needs, strict=True))


choice.register(
    choice.Implementation(
        "raw_conv",
        "triton",
        Functions(forward, backward),
        devices=triton_support.devices(),
        missing=triton_support.missing,
        refuses=refuses,
    )
)
