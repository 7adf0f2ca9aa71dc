"""raw_conv, forward: an implicit matrix product whose right side is never in memory.

``out[channel, pixel] = sum over plane, position of weight[channel, plane, position] *
x[plane][position, pixel]``. A program owns ``BLOCK_CHANNELS`` output channels of ``BLOCK_PIXELS``
consecutive output pixels of one sample, so that pattern, levels, gain and mix are scalars to it.
It takes the kernel's positions 16 at a time (what a tensor-core instruction takes), makes the four
planes of ``[16, pixels]`` in registers (``planes.py``), and multiplies each with the
weights of its plane: ``tl.dot``, float32 accumulators. Bias and activation follow, and each output
is written once.

Predicted floor: memory. For a 3x3 stride-2 stem with 32 channels in bfloat16 an output pixel reads
32 bytes of mosaic and writes 64, against 2 x 4 x 16 x 32 multiply-adds (7 of the 16 positions are
padding): 43 per byte, where an H100's ratio of bfloat16 rate to bandwidth is near 150.

Every sensor value is normalised again for each position that reads it: 9/4 times at 3x3 stride 2,
49/4 times at 7x7 stride 2. Only the gamma curve (two special-function instructions a value) is
likely to show, in the 7x7 stem.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from isp_distill.backends.triton_support import interpreted

from .planes import place_tile, planes_of_tile

#: What one tensor-core instruction takes along the sum.
BLOCK_POSITIONS = 16


@triton.jit
def convolve_tile(
    sample_ptr, row_stride, table, last_code, pattern, weight, black_ptr, scale_ptr, mix_ptr, gamma,
    padding_ptr,
    tile, channel, channels, positions, height, width, left, top, out_width, out_pixels,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, CLIP: tl.constexpr, MIX: tl.constexpr,
    CURVE: tl.constexpr, PADDED: tl.constexpr, PAIRS: tl.constexpr, ELEMENT: tl.constexpr,
    LINEARISE: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """The convolution without bias, ``[BLOCK_CHANNELS, BLOCK_PIXELS]`` in float32.

    ``positions`` is ``KERNEL * KERNEL`` as a number that the compiler does not know: a loop that it
    does not unroll, whose loads then do not all wait in registers.
    """
    AREA: tl.constexpr = KERNEL * KERNEL
    total = tl.zeros((BLOCK_CHANNELS, BLOCK_PIXELS), tl.float32)
    for begin in range(0, positions, BLOCK_POSITIONS):
        row, column, there = place_tile(
            tile, begin, out_width, out_pixels, left, top,
            KERNEL, STRIDE, BLOCK_POSITIONS, BLOCK_PIXELS,
        )  # fmt: skip
        x0, x1, x2, x3 = planes_of_tile(
            sample_ptr, row_stride, table, last_code, pattern, row, column, there, height, width,
            black_ptr, scale_ptr, mix_ptr, gamma, padding_ptr,
            PAIRS, ELEMENT, LINEARISE, CLIP, MIX, CURVE, PADDED,
        )  # fmt: skip
        position = begin + tl.arange(0, BLOCK_POSITIONS)
        w_ptr = weight + channel[:, None] * (4 * AREA) + position[None, :]
        w_mask = (channel < channels)[:, None] & (position < AREA)[None, :]
        w0 = tl.load(w_ptr, mask=w_mask, other=0.0).to(OPERAND)
        w1 = tl.load(w_ptr + AREA, mask=w_mask, other=0.0).to(OPERAND)
        w2 = tl.load(w_ptr + 2 * AREA, mask=w_mask, other=0.0).to(OPERAND)
        w3 = tl.load(w_ptr + 3 * AREA, mask=w_mask, other=0.0).to(OPERAND)
        total = tl.dot(w0, x0.to(OPERAND), total, input_precision=PRECISION)
        total = tl.dot(w1, x1.to(OPERAND), total, input_precision=PRECISION)
        total = tl.dot(w2, x2.to(OPERAND), total, input_precision=PRECISION)
        total = tl.dot(w3, x3.to(OPERAND), total, input_precision=PRECISION)
    return total


@triton.jit
def activated(y, ACTIVATION: tl.constexpr):
    """The epilogue; gelu is the exact one."""
    if ACTIVATION == "relu":
        return tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "relu6":
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
        return tl.minimum(y, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "silu":
        return y / (1.0 + tl.exp(-y))
    elif ACTIVATION == "gelu":
        return 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    else:
        return y


def forward_configurations(float32: bool) -> list[triton.Config]:
    """Pixels of a tile, and warps: two sizes, for large frames and for small batches.

    Both keep 8 to 16 accumulators a thread, and no register spills on sm_80, 90 and 100 (a test
    reads that): the four planes of 8 elements a thread are what takes the registers. float32 splits
    each operand in two (see ``PRECISION``), so it has half the pixels.
    """
    sizes = ((32, 4), (64, 8)) if float32 else ((64, 4), (128, 8))
    return [
        triton.Config({"BLOCK_PIXELS": pixels}, num_warps=warps, num_stages=1)
        for pixels, warps in sizes
    ]


def _fitting(configurations: Any, arguments: Any, **constants: Any) -> list[triton.Config]:
    """Of all configurations those for the operands' type; one is enough for the interpreter."""
    fitting = forward_configurations(constants["OPERAND"] == tl.float32)
    return fitting[:1] if interpreted() else fitting


@triton.autotune(
    configs=forward_configurations(True) + forward_configurations(False),
    key=["channels", "KERNEL", "STRIDE", "CURVE", "MIX", "OPERAND", "ELEMENT", "LINEARISE"],
    prune_configs_by={"early_config_prune": _fitting},
)
@triton.jit
def raw_conv_forward_kernel(
    mosaic, weight, bias, black, scale, mix, gamma_ptr, padding_value, patterns, linearise, out,
    sample_stride, row_stride, table_step, last_code, out_sample, out_channel, out_pixel,
    channels, positions, height, width, left, top, out_width, out_pixels,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, CLIP: tl.constexpr, MIX: tl.constexpr,
    CURVE: tl.constexpr, PADDED: tl.constexpr, PAIRS: tl.constexpr, ELEMENT: tl.constexpr,
    LINEARISE: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of pixels, blocks of channels, samples."""
    tile = tl.program_id(0)
    sample = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    gamma = 1.0
    if CURVE == "gamma":
        gamma = tl.load(gamma_ptr)
    y = convolve_tile(
        mosaic + sample * sample_stride, row_stride, linearise + sample * table_step, last_code,
        tl.load(patterns + sample).to(tl.int32) & 3, weight, black + 4 * sample,
        scale + 4 * sample, mix + 16 * sample, gamma, padding_value,
        tile, channel, channels, positions, height, width, left, top, out_width, out_pixels,
        KERNEL, STRIDE, CLIP, MIX, CURVE, PADDED, PAIRS, ELEMENT, LINEARISE, OPERAND, PRECISION,
        BLOCK_CHANNELS, BLOCK_PIXELS, BLOCK_POSITIONS,
    )  # fmt: skip
    if BIAS:
        y += tl.load(bias + channel, mask=channel < channels, other=0.0)[:, None]
    y = activated(y, ACTIVATION)
    pixel = tile * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    offset = channel.to(tl.int64)[:, None] * out_channel + pixel.to(tl.int64)[None, :] * out_pixel
    mask = (channel < channels)[:, None] & (pixel < out_pixels)[None, :]
    tl.store(out + sample * out_sample + offset, y.to(out.dtype.element_ty), mask=mask)


def launch_forward(call: dict[str, Any], out: Tensor) -> None:
    """Fill ``out`` ``[N, C, h, w]``, contiguous or channels_last.

    ``call``: the kernel's arguments by name, without those of the output (see
    ``isp_distill/ops/raw_conv/triton.py``).
    """
    batch, channels = out.shape[:2]
    if out.numel() == 0:
        return
    blocks = triton.cdiv(channels, call["BLOCK_CHANNELS"])
    raw_conv_forward_kernel[lambda meta: (
        triton.cdiv(call["out_pixels"], meta["BLOCK_PIXELS"]), blocks, batch,
    )](
        out=out, out_sample=out.stride(0), out_channel=out.stride(1),
        out_pixel=1 if out.is_contiguous() else channels,
        **call,
    )  # fmt: skip
