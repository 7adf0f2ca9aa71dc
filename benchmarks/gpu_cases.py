"""The calls that gpu_static.py takes apart: each operation at a size that people train with.

A case launches the library's own code on tensors without memory, so that tiles, specialisation and
alignment are those of a real call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from compiled_triton import Launch, recorded
from isp_distill.kernels import (
    distill_held,
    distill_streamed,
    distill_upsampled,
    raw_conv_backward,
    raw_conv_forward,
    render_columns,
    render_rows,
    render_unresized,
)
from isp_distill.kernels import unprocess as unprocess_kernels
from torch import Tensor

from isp_distill.ops import raw_conv_triton, render_triton, unprocess_triton
from isp_distill.ops.distill_options import checked_options
from isp_distill.ops.distill_triton import TritonKernels
from isp_distill.ops.raw_conv_operator import Needs
from isp_distill.ops.raw_conv_operator import Settings as ConvSettings
from isp_distill.ops.raw_conv_operator import Tensors as ConvTensors
from isp_distill.ops.raw_conv_operator import output_like
from isp_distill.ops.render_operator import Settings as RenderSettings
from isp_distill.ops.render_operator import Tensors as RenderTensors
from isp_distill.ops.unprocess_operator import ExposeCall, UnprocessCall

#: Every kernel, where its launcher finds it, and the arguments that it writes; it reads the others.
KERNELS = {
    "raw_conv_forward_kernel": (raw_conv_forward, {"out"}),
    "raw_conv_weight_kernel": (raw_conv_backward, {"weight_sums", "bias_sums"}),
    "raw_conv_colour_kernel": (raw_conv_backward, {"colour_sums"}),
    "held_kernel": (distill_held, {"grad", "losses", "agreements"}),
    "streamed_kernel": (distill_streamed, {"grad", "losses", "agreements"}),
    "pixels_kernel": (distill_upsampled, {"numbers", "losses", "agreements"}),
    "cells_kernel": (distill_upsampled, {"grad"}),
    "render_rows_kernel": (render_rows, {"rows"}),
    "render_columns_kernel": (render_columns, {"out"}),
    "render_unresized_kernel": (render_unresized, {"out"}),
    "unprocess_kernel": (unprocess_kernels, {"out"}),
    "expose_kernel": (unprocess_kernels, {"out"}),
}
# Kernel, stride, padding and channels of the stems of EfficientNet, ResNet and ConvNeXt.
STEMS = {"efficientnet": (3, 2, 1, 32), "resnet": (7, 2, 3, 64), "convnext": (4, 4, 0, 96)}


@dataclass(frozen=True)
class Case:
    """One call of one operation.

    Attributes:
        operation: as the library names it.
        name: what distinguishes the call.
        size: in words.
        unit: what the bytes are counted for.
        units: how many of them there are.
        run: makes the call.
        operations: of each kernel, per unit, by what computes them (see ``Gpu.rates``). A kernel
            that is not named is one straight line, whose instructions are counted.
        wide: kernels that must load 16 bytes at a time.
        tensor_core: kernels that must use the matrix units.
    """

    operation: str
    name: str
    size: str
    unit: str
    units: int
    run: Callable[[], object]
    operations: dict[str, dict[str, float]] = field(default_factory=dict)
    wide: frozenset[str] = frozenset()
    tensor_core: frozenset[str] = frozenset()

    def launches(self) -> list[Launch]:
        """What the call launches, every tile that the autotuner would try."""
        with recorded(*((module, name) for name, (module, _) in KERNELS.items())) as launches:
            self.run()
        return launches


def traffic(launch: Launch) -> tuple[int, int]:
    """Bytes that a launch reads and writes if it takes each of its tensors through memory once."""
    written = KERNELS[launch.kernel.__name__][1]
    tensors = launch.tensors()
    stores = sum(t.nbytes for name, t in tensors.items() if name in written)
    return sum(t.nbytes for t in tensors.values()) - stores, stores


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _conv_operations(stem: str, half: bool) -> dict[str, float]:
    """Per output value: what the tiles issue, their padding included.

    Positions are padded to 16 and channels to a block; float32 multiplies three times in TF32. A
    sensor value costs about six instructions (unpack, subtract, multiply, clamp twice, mask) for
    each position that reads it, once for a block of channels.
    """
    kernel, _, _, channels = STEMS[stem]
    block = min(64 if half else 32, 1 << (channels - 1).bit_length())
    positions = -(-(kernel**2) // 16) * 16
    padded = -(-channels // block) * block / channels
    products = 2 * 4 * positions * padded * (1 if half else 3)
    scalar = 6 * 4 * positions * padded / block
    return {"half" if half else "tf32": products, "scalar": scalar}


def _conv(stem: str, dtype: torch.dtype, backward: bool, colour: bool = False) -> Case:
    kernel, stride, padding, channels = STEMS[stem]
    batch, side = 32, 512
    height = width = side if stem != "convnext" else 448
    tensors = ConvTensors(
        mosaic=_meta(batch, height, width, dtype=torch.uint16),
        weight=_meta(channels, 4, kernel, kernel),
        bias=_meta(channels),
        black=_meta(batch, 4),
        white=_meta(batch),
        pattern=_meta(batch, dtype=torch.int64),
        gain=_meta(batch, 4),
        padding_value=None,
        mix=_meta(batch, 4, 4) if colour else None,
        gamma=_meta() if colour else None,
    )
    curve = "gamma" if colour else "linear"
    settings = ConvSettings(stride, (padding,) * 4, True, curve, "relu", dtype, False)
    out = output_like(tensors.mosaic, tensors.weight, settings)
    needs = Needs(True, True, colour, colour, colour)

    def run() -> None:
        if backward:
            raw_conv_triton.backward(torch.empty_like(out), out, tensors, settings, needs)
        else:
            raw_conv_triton.forward(tensors, settings)

    half = dtype != torch.float32
    operations = _conv_operations(stem, half)
    names = ["raw_conv_weight_kernel"] if backward else ["raw_conv_forward_kernel"]
    if colour and backward:
        names.append("raw_conv_colour_kernel")
    return Case(
        "raw_conv",
        f"{stem} {'backward' if backward else 'forward'} {_short(dtype)}{' colour' * colour}",
        f"{batch} x {height} x {width}",
        "output",
        out.numel(),
        run,
        dict.fromkeys(names, operations),
        tensor_core=frozenset(names),
    )


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
