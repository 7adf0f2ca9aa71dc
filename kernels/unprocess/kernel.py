"""unprocess and expose: what ``ops/reference.py`` computes, bit for bit, in one pass.

A program owns ``BLOCK`` periods side by side, two rows of ``2 * BLOCK`` columns. It works on a row
as it lies in memory, so that loads and stores are wide: colours alternate along it, and a site's
colour and settings are chosen by the column's parity. The noise is drawn by period, four numbers at
once, and joined into the same order. Without noise a program waits for memory.

No multiplication is fused with an addition (``enable_fp_fusion``): the results are those of every
other backend.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..elementary import exp2, inverse_smoothstep, log2
from ..philox import normal_pair, philox

#: Periods a program: four columns of each row a thread, a 16-byte load of float32.
BLOCK = 256
WARPS = 4


@triton.jit
def _light(pointer, inside, BYTES: tl.constexpr):
    """Display values to linear light: inverse smoothstep and gamma. NaN counts as black."""
    x = tl.load(pointer, mask=inside, other=0).to(tl.float32)
    if BYTES:
        x = tl.div_rn(x, tl.full(x.shape, 255.0, tl.float32))
    x = tl.minimum(tl.where(x > 0.0, x, 0.0), 1.0)
    return exp2(2.2 * log2(tl.maximum(inverse_smoothstep(x), 1e-8)))


@triton.jit
def _see(r, g, b, matrix, gain, plane):
    """What the site of each column sees, before its noise, in [0, 1]."""
    red = tl.load(matrix) * r + tl.load(matrix + 1) * g + tl.load(matrix + 2) * b
    green = tl.load(matrix + 3) * r + tl.load(matrix + 4) * g + tl.load(matrix + 5) * b
    blue = tl.load(matrix + 6) * r + tl.load(matrix + 7) * g + tl.load(matrix + 8) * b
    mean = (red + green + blue) * 0.3333333333333333
    over = tl.maximum(mean - 0.9, 0.0) * 10.0
    bright = over * over
    safe = tl.maximum(bright + (1.0 - bright) * gain, gain)
    own = tl.where(plane == 0, red, tl.where(plane == 3, blue, green))
    return tl.minimum(tl.maximum(own * safe, 0.0), 1.0)


@triton.jit
def _of_plane(planes, plane):
    """One of four numbers (R, Gr, Gb, B) for each column."""
    low = tl.where(plane == 0, tl.load(planes), tl.load(planes + 1))
    high = tl.where(plane == 2, tl.load(planes + 2), tl.load(planes + 3))
    return tl.where(plane < 2, low, high)


@triton.jit
def _with_noise(x, first, second, shot, read, BLOCK: tl.constexpr):
    """Adds the noise of the row whose periods drew ``first`` (even columns) and ``second``."""
    normal = tl.reshape(tl.join(first, second), (2 * BLOCK,))
    return x + normal * tl.sqrt_rn(shot * tl.maximum(x, 0.0) + read)


@triton.jit
def _write(pointer, inside, x, black, white):
    """Quantises to uint16; NaN becomes 0. Adding 1.5 * 2^23 rounds halves to even."""
    v = x * (white - black) + black
    v = tl.minimum(tl.where(v > 0.0, v, 0.0), 65535.0)
    v = tl.minimum((v + 12582912.0) - 12582912.0, white)
    tl.store(pointer, v.to(tl.int32).to(tl.uint16), mask=inside)


@triton.jit
def _place(height, width, BLOCK: tl.constexpr):
    """Sample, row of periods, periods and columns of this program."""
    sample = tl.program_id(1).to(tl.int64)
    blocks = tl.cdiv(width, 2 * BLOCK)
    period_row = tl.program_id(0) // blocks
    begin = tl.program_id(0) % blocks * BLOCK
    period = period_row * (width // 2) + begin + tl.arange(0, BLOCK)
    column = 2 * begin + tl.arange(0, 2 * BLOCK)
    return sample, period_row.to(tl.int64), period.to(tl.uint32), column


@triton.jit
def _draw(period, sample, key_low, key_high):
    """The four sites' standard normal numbers of each period, in reading order."""
    a, b, c, d = philox(
        period,
        sample.to(tl.uint32),
        key_low.to(tl.uint32, bitcast=True),
        key_high.to(tl.uint32, bitcast=True),
    )
    n0, n1 = normal_pair(a, b)
    n2, n3 = normal_pair(c, d)
    return n0, n1, n2, n3


@triton.jit(do_not_specialize=["key_low", "key_high"])
def unprocess_kernel(
    rgb, rgb_to_camera, gains, patterns, blacks, whites, shots, reads, out,
    sample_stride, channel_stride, row_stride, column_stride, height, width, key_low, key_high,
    NOISY: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: (rows of periods x blocks of a row, samples)."""
    sample, period_row, period, column = _place(height, width, BLOCK)
    inside = column < width
    pattern = tl.load(patterns + sample).to(tl.int32) & 3
    white = tl.load(whites + sample)
    matrix, gain_ptr = rgb_to_camera + 9 * sample, gains + 3 * sample
    if NOISY:
        shot, read = tl.load(shots + sample), tl.load(reads + sample)
        n0, n1, n2, n3 = _draw(period, sample, key_low, key_high)
    for row in tl.static_range(2):
        y = 2 * period_row + row
        source = rgb + sample * sample_stride + y * row_stride
        at = column.to(tl.int64) * column_stride
        r = _light(source + at, inside, BYTES)
        g = _light(source + channel_stride + at, inside, BYTES)
        b = _light(source + 2 * channel_stride + at, inside, BYTES)
        plane = pattern ^ (2 * row + column % 2)
        gain = tl.where(plane == 0, tl.load(gain_ptr), tl.load(gain_ptr + 1))
        gain = tl.where(plane == 3, tl.load(gain_ptr + 2), gain)
        x = _see(r, g, b, matrix, gain, plane)
        if NOISY:
            if row == 0:
                x = _with_noise(x, n0, n1, shot, read, BLOCK)
            else:
                x = _with_noise(x, n2, n3, shot, read, BLOCK)
        black = _of_plane(blacks + 4 * sample, plane)
        target = out + (sample * height + y) * width + column
        _write(target, inside, x, black, white)


@triton.jit(do_not_specialize=["key_low", "key_high"])
def expose_kernel(
    mosaic, factors, patterns, blacks, whites, shots, reads, out,
    sample_stride, row_stride, column_stride, height, width, key_low, key_high,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: (rows of periods x blocks of a row, samples)."""
    sample, period_row, period, column = _place(height, width, BLOCK)
    inside = column < width
    pattern = tl.load(patterns + sample).to(tl.int32) & 3
    white, factor = tl.load(whites + sample), tl.load(factors + sample)
    shot, read = tl.load(shots + sample), tl.load(reads + sample)
    n0, n1, n2, n3 = _draw(period, sample, key_low, key_high)
    for row in tl.static_range(2):
        y = 2 * period_row + row
        source = mosaic + sample * sample_stride + y * row_stride
        at = column.to(tl.int64) * column_stride
        value = tl.load(source + at, mask=inside, other=0).to(tl.float32)
        plane = pattern ^ (2 * row + column % 2)
        black = _of_plane(blacks + 4 * sample, plane)
        unit = tl.div_rn(tl.full(black.shape, 1.0, tl.float32), white - black)
        x = (value - black) * unit * factor
        if row == 0:
            x = _with_noise(x, n0, n1, shot, read, BLOCK)
        else:
            x = _with_noise(x, n2, n3, shot, read, BLOCK)
        target = out + (sample * height + y) * width + column
        _write(target, inside, x, black, white)


def _key(seed: int) -> tuple[int, int]:
    """The halves of a 64-bit seed as signed numbers of 32 bits, whose type never changes."""
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    return (low ^ 0x80000000) - 0x80000000, (high ^ 0x80000000) - 0x80000000


def _grid(out: Tensor) -> tuple[int, int]:
    batch, height, width = out.shape
    return height // 2 * triton.cdiv(width, 2 * BLOCK), batch


def launch_unprocess(
    rgb: Tensor,
    rgb_to_camera: Tensor,
    gains: Tensor,
    pattern: Tensor,
    black: Tensor,
    white: Tensor,
    shot: Tensor | None,
    read: Tensor | None,
    seed: int,
    out: Tensor,
) -> None:
    """Fills ``out``, uint16 ``[N, H, W]``; the settings are contiguous float32, pattern int64."""
    unprocess_kernel[_grid(out)](
        rgb, rgb_to_camera, gains, pattern, black, white,
        white if shot is None else shot, white if read is None else read, out,
        *rgb.stride(), out.shape[1], out.shape[2], *_key(seed),
        NOISY=shot is not None, BYTES=rgb.dtype == torch.uint8, BLOCK=BLOCK,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip


def launch_expose(
    mosaic: Tensor,
    factor: Tensor,
    shot: Tensor,
    read: Tensor,
    pattern: Tensor,
    black: Tensor,
    white: Tensor,
    seed: int,
    out: Tensor,
) -> None:
    """Fills ``out``, uint16 ``[N, H, W]``, from a mosaic of the same shape."""
    expose_kernel[_grid(out)](
        mosaic, factor, pattern, black, white, shot, read, out,
        *mosaic.stride(), out.shape[1], out.shape[2], *_key(seed),
        BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
