"""The calls that gpu_static.py takes apart: each operation at a size that people train with.

A case launches the library's own code on tensors without memory, so that tiles, specialisation and
alignment are those of a real call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import compiled_cuda
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
from isp_distill.ops.raw_conv_operator import Needs, output_like
from isp_distill.ops.raw_conv_operator import Settings as ConvSettings
from isp_distill.ops.raw_conv_operator import Tensors as ConvTensors
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
class CudaKernel:
    """A kernel of csrc/cuda in a call.

    Attributes:
        source: its file.
        name: as the source has it.
        threads: of a block.
        shared: bytes of a block.
        loaded: bytes that the call reads.
        stored: bytes that it writes.
        operations: as :class:`Case` has them.
        label: what the table calls it, if not by its name.
        tensor_core: whether it must use the matrix units.
    """

    source: str
    name: str
    threads: int
    shared: int
    loaded: int
    stored: int
    operations: dict[str, float]
    label: str = ""
    tensor_core: bool = False


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


#: Blocks of a backward launch, each of which leaves sums to be added up (csrc/cuda).
CUDA_BLOCKS = 256


def _cuda_conv(stem: str, mosaic: Tensor, out: Tensor, backward: bool) -> CudaKernel:
    """The kernel of csrc/cuda: its tiles are 8 x 32 outputs, each converted once for a group."""
    kernel, stride, _, channels = STEMS[stem]
    half = out.dtype != torch.float32
    group, shared, parts = compiled_cuda.plan(
        kernel, stride, channels, out.element_size(), backward
    )
    weights = channels * (4 * kernel**2 + 1)
    loaded, stored = mosaic.nbytes + 4 * weights, out.nbytes
    positions, padded = -(-(kernel**2) // 4) * 4, -(-channels // 32) * 32
    if backward:
        loaded, stored = mosaic.nbytes + 2 * out.nbytes, 4 * weights * CUDA_BLOCKS * parts
        positions, padded = (kernel**2 + 8) // 8 * 8, -(-channels // group) * group
    periods = (7 * stride + kernel) * (31 * stride + kernel) / 256 * -(-channels // group)
    return CudaKernel(
        f"raw_conv_{'backward' if backward else 'forward'}.cu",
        f"raw_conv_{'backward' if backward else 'forward'}_{str(out.dtype).split('.')[1]}",
        256,
        shared,
        loaded,
        stored,
        {
            "half" if half else "tf32": 2 * 4 * positions * padded / channels * (1 if half else 3),
            "scalar": 6 * 4 * periods / channels,
        },
        tensor_core=True,
    )


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
        cuda=() if colour else (_cuda_conv(stem, tensors.mosaic, out, backward),),
    )


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


# Per logit, counted from the formulas: two exponentials for the sums and two for the gradient of
# what is not held; conversions, scaling, two running maxima and sums, and the gradient.
_LOGIT = {"special": 2.0, "scalar": 14.0}
# Per full-resolution logit: the four-tap interpolation of both maps, then as above; the cells'
# kernel interpolates again and adds up with the transposed weights.
_PIXEL_LOGIT = {"special": 2.0, "scalar": 14.0 + 8.0}
_CELL_LOGIT = {"special": 2.0, "scalar": 6.0 + 8.0 + 2.0}
# The same of csrc/cuda; "issue" is counted in the loop over the classes of sm_90's machine code, so
# that these lines promise less than Triton's. The cells' kernel computes the patches around its tile
# as well.
_CUDA_PIXEL_LOGIT = {"special": 2.0, "scalar": 16.5, "issue": 22.4}
_CUDA_CELL_LOGIT = {"special": 2.0, "scalar": 10.0, "issue": 17.5}
#: Threads of a block of the loss of logits at their own resolution (csrc/cuda/distill_call.h).
_LOSS_THREADS = 256


def _cuda_distill(student: Tensor, size: int) -> tuple[CudaKernel, ...]:
    """The kernels of csrc/cuda for forward KL with its gradient."""
    shape, source = tuple(student.shape), compiled_cuda.DISTILL
    dtype = (torch.float32, torch.bfloat16, torch.float16).index(student.dtype)
    maps, written = 2 * student.nbytes, student.nbytes
    if not size:
        dense = len(shape) > 2
        label, name = {
            (True, True): ("held, few classes", "held<1, 3>"),
            (True, False): ("held, dense", "held<1, 4>"),
            (False, True): ("held, a row a block", "held<1, 1>"),
            (False, False): ("streamed", "streamed<1>"),
        }[dense, shape[1] <= (32 if dense else 4096)]
        (shared,) = compiled_cuda.distill_plan(None, 0, dtype)
        loss = (source, name, _LOSS_THREADS, shared, maps, written, _LOGIT, label)
        return (CudaKernel(*loss),)
    _, threads, bytes_, cell_threads, cell_bytes, across, down = compiled_cuda.distill_plan(
        shape, size, dtype
    )
    numbers = 16 * shape[0] * size**2
    again = (across + 1) / across * (down + 1) / down
    of_cells = {kind: again * count for kind, count in _CUDA_CELL_LOGIT.items()}
    return (
        CudaKernel(
            source, "upsampled_pixels<1>", threads, bytes_, maps, numbers, _CUDA_PIXEL_LOGIT,
            f"pixels [{threads}]",
        ),
        CudaKernel(
            source, "upsampled_cells<1, 0>", cell_threads, cell_bytes, maps + numbers, written,
            of_cells, f"cells [{across} x {down}]",
        ),
    )  # fmt: skip


def _distill(name: str, shape: tuple[int, ...], dtype: torch.dtype, size: int = 0) -> Case:
    """Forward KL with its gradient; with a ``size``, of maps upsampled to it."""
    student, teacher = _meta(*shape, dtype=dtype), _meta(*shape, dtype=dtype)
    options = checked_options("forward_kl", 4.0, 1.0, -100, 0.0, "mean")
    rest = (
        (None, None, None),
        _meta(2, dtype=torch.float64),
        options,
        torch.empty_like(student),
        1.0,
    )
    kernels = TritonKernels()

    def run() -> None:
        if size:
            kernels.upsampled(student, teacher, (size, size), False, *rest)
        else:
            kernels.logits(student, teacher, *rest)

    operations = dict.fromkeys(("held_kernel", "streamed_kernel"), _LOGIT)
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
        cuda=_cuda_distill(student, size),
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
