"""The calls that gpu_static.py takes apart: each operation at a size that people train with.

A case launches the library's own code on tensors without memory, so that tiles, specialisation and
alignment are those of a real call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from compiled_triton import Launch, recorded
from gpu_cuda_cases import LOGIT, STEMS, CudaKernel, cuda_conv, cuda_distill
from isp_distill.kernels.distill_loss import (
    held as distill_held,
)
from isp_distill.kernels.distill_loss import (
    streamed as distill_streamed,
)
from isp_distill.kernels.distill_loss import (
    upsampled as distill_upsampled,
)
from isp_distill.kernels.raw_conv import backward as raw_conv_backward
from isp_distill.kernels.raw_conv import forward as raw_conv_forward
from isp_distill.kernels.render import (
    columns as render_columns,
)
from isp_distill.kernels.render import (
    rows as render_rows,
)
from isp_distill.kernels.render import (
    unresized as render_unresized,
)
from isp_distill.kernels.unprocess import kernel as unprocess_kernels
from torch import Tensor

from isp_distill.ops.distill_loss.options import checked_options
from isp_distill.ops.distill_loss.request import Call
from isp_distill.ops.distill_loss.triton import TritonKernels
from isp_distill.ops.raw_conv import triton as raw_conv_triton
from isp_distill.ops.raw_conv.operator import Needs, output_like
from isp_distill.ops.raw_conv.operator import Settings as ConvSettings
from isp_distill.ops.raw_conv.operator import Tensors as ConvTensors
from isp_distill.ops.render import triton as render_triton
from isp_distill.ops.render.operator import Settings as RenderSettings
from isp_distill.ops.render.operator import Tensors as RenderTensors
from isp_distill.ops.unprocess import triton as unprocess_triton
from isp_distill.ops.unprocess.operator import ExposeCall, UnprocessCall

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
        cuda: the kernels of csrc/cuda that do the same, if there are some.
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
    cuda: tuple[CudaKernel, ...] = ()

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
        wide=frozenset(("raw_conv_weight_kernel",)),  # the gradient
        tensor_core=frozenset(names),
        cuda=() if colour else (cuda_conv(stem, tensors.mosaic, out, backward),),
    )


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


# Per full-resolution logit: the four-tap interpolation of both maps, then as above; the cells'
# kernel interpolates again and adds up with the transposed weights, for each of the four cells that
# a pixel came from.
_PIXEL_LOGIT = {"special": 2.0, "scalar": 14.0 + 8.0}
_CELL_LOGIT = {"special": 4 * 2.0, "scalar": 4 * (6.0 + 8.0 + 2.0)}


def _distill(name: str, shape: tuple[int, ...], dtype: torch.dtype, size: int = 0) -> Case:
    """Forward KL with its gradient; with a ``size``, of maps upsampled to it."""
    student, teacher = _meta(*shape, dtype=dtype), _meta(*shape, dtype=dtype)
    options = checked_options("forward_kl", 4.0, 1.0, -100, 0.0, "mean")
    factors = _meta(2, dtype=torch.float64)
    call = Call((None, None, None), factors, options, torch.empty_like(student), 1.0)
    kernels = TritonKernels()

    def run() -> None:
        if size:
            kernels.upsampled(student, teacher, (size, size), False, call)
        else:
            kernels.logits(student, teacher, call)

    operations = dict.fromkeys(("held_kernel", "streamed_kernel"), LOGIT)
    units = student.numel()
    if size:
        operations = {"pixels_kernel": _PIXEL_LOGIT, "cells_kernel": _CELL_LOGIT}
        units = shape[0] * shape[1] * size**2
    return Case(
        "upsampled_distill_loss" if size else "distill_loss",
        f"{name} {_short(dtype)}",
        " x ".join(map(str, shape)) + (f" to {size} x {size}" if size else ""),
        "full-size logit" if size else "logit",
        units,
        run,
        operations,
        wide=frozenset(("held_kernel", "streamed_kernel")),
        cuda=cuda_distill(student, size),
    )


def _render(name: str, sensor: tuple[int, int], target: tuple[int, int], method: str) -> Case:
    tensors = RenderTensors(
        mosaic=_meta(1, *sensor, dtype=torch.uint16),
        black=_meta(1, 4),
        white=_meta(1),
        pattern=_meta(1, dtype=torch.int64),
        gain=_meta(1, 4),
        ccm=_meta(1, 3, 3),
        mean=_meta(3),
        std=_meta(3),
    )
    settings = RenderSettings(
        method, "srgb", 1, (0, 0, *sensor), target, "display", torch.bfloat16, False
    )
    # Per sensor value: normalise 4, Malvar 25, colour matrix 9, tone 12 and 6 special functions,
    # the row's weight 6; a superpixel does all but the first for four sensor values at once. Per
    # value between the kernels and channel a load, a weight and a multiply-add.
    share = 0.25 if method == "superpixel" else 1.0
    demosaic = 1.0 if method == "superpixel" else 25.0
    of_rows = {"scalar": 4.0 + share * (demosaic + 9 + 12 + 6), "special": 6 * share}
    values = sensor[0] * sensor[1]
    columns = 3 * 3 * target[0] * sensor[1] / values
    return Case(
        "render",
        name,
        f"{sensor[0]} x {sensor[1]} to {target[0]} x {target[1]}",
        "sensor value",
        values,
        lambda: render_triton.forward(tensors, settings),
        {
            "render_rows_kernel": of_rows,
            "render_columns_kernel": {"scalar": columns},
        },
    )


def _unprocess(dtype: torch.dtype, noisy: bool) -> Case:
    batch, side = 32, 448
    call = UnprocessCall(
        rgb=_meta(batch, 3, side, side, dtype=dtype),
        rgb_to_camera=_meta(batch, 3, 3),
        gains=_meta(batch, 3),
        pattern=_meta(batch, dtype=torch.int64),
        black=_meta(batch, 4),
        white=_meta(batch),
        shot=_meta(batch) if noisy else None,
        read=_meta(batch) if noisy else None,
        seed=0,
    )
    return Case(
        "unprocess",
        ("fp32" if dtype == torch.float32 else "uint8") + (" noise" if noisy else ""),
        f"{batch} x 3 x {side} x {side}",
        "sensor value",
        batch * side**2,
        lambda: unprocess_triton.unprocess(call),
        wide=frozenset(("unprocess_kernel",) if dtype == torch.float32 else ()),
    )


def _expose() -> Case:
    batch, side = 32, 448
    numbers = [_meta(batch) for _ in range(3)]
    mosaic, pattern = _meta(batch, side, side, dtype=torch.uint16), _meta(batch, dtype=torch.int64)
    call = ExposeCall(mosaic, *numbers, pattern, _meta(batch, 4), _meta(batch), 0)
    size = f"{batch} x {side} x {side}"
    return Case(
        "expose", "uint16", size, "sensor value", mosaic.numel(),
        functools.partial(unprocess_triton.expose, call),
    )  # fmt: skip


def cases() -> Iterator[Case]:
    """Every case, in the order of the table."""
    wide, half = torch.float32, torch.bfloat16
    for stem in STEMS:
        yield _conv(stem, half, backward=False)
        yield _conv(stem, half, backward=True)
    yield _conv("resnet", wide, backward=False)
    yield _conv("resnet", wide, backward=True)
    yield _conv("resnet", half, backward=True, colour=True)
    yield _distill("rows", (4096, 1000), half)
    yield _distill("rows", (4096, 1000), wide)
    yield _distill("long rows", (512, 100_000), half)
    yield _distill("dense Cityscapes", (4, 19, 512, 1024), half)
    yield _distill("dense ADE20K", (4, 150, 512, 512), half)
    yield _distill("ADE20K", (4, 150, 128, 128), half, size=512)
    yield _render("malvar, resized", (3000, 4000), (224, 336), "malvar")
    yield _render("superpixel, resized", (3000, 4000), (224, 336), "superpixel")
    yield _render("malvar", (3000, 4000), (3000, 4000), "malvar")
    yield _unprocess(wide, noisy=False)
    yield _unprocess(torch.uint8, noisy=True)
    yield _expose()
