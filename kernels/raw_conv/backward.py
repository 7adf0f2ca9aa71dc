"""raw_conv, backward: the gradients of weight and bias, and of gain, mix and gamma.

Nothing but the mosaic and the output's gradient is read: a program makes the planes of a tile again
(``planes.py``). Two kernels, the second only where it is asked for:

1. **weight and bias**, a matrix product summed over all pixels of all samples (split-K):
   ``dW[channel, plane, position]`` sums ``g[channel, pixel] * x[plane][position, pixel]`` over
   pixels, with g the output's gradient times the activation's derivative. A program owns a block of
   channels and every ``splits``-th tile of pixels, keeps its sums in registers, and writes them to
   its own place in ``[splits, C, 4, K * K]``.
2. **gain, mix, gamma**: ``gx[plane][position, pixel] = sum over channel of W * g`` is the gradient
   of each value that the convolution read. The parameters are the same for every pixel, so it is
   never scattered to the pixels: each element goes back through curve, mix and clamp where it
   stands, and is summed.

Both leave sums per program, added up afterwards in a fixed order: no float atomics, so the result
is the same every time. The number of programs depends on the shapes alone.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .forward import convolve_tile
from .planes import (
    clamped,
    curve_derivative,
    gamma_derivative,
    let_through,
    load_planes,
    normalised_planes,
    place_tile,
    planes_of_tile,
)

#: Programs along the sum: some per multiprocessor of the largest GPU, and few enough that the
#: partial sums stay small beside the output.
SPLITS = 256


@triton.jit
def _times_derivative(g, y, ACTIVATION: tl.constexpr):
    """g times the activation's derivative, from what went in, or (relu, relu6) what came out."""
    if ACTIVATION == "relu":
        return tl.where(y <= 0.0, 0.0, g)
    elif ACTIVATION == "relu6":
        return tl.where((y <= 0.0) | (y >= 6.0), 0.0, g)
    elif ACTIVATION == "silu":
        s = 1.0 / (1.0 + tl.exp(-y))
        return g * s * (1.0 + y * (1.0 - s))
    elif ACTIVATION == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(y * 0.7071067811865476))
        return g * (cdf + y * 0.3989422804014327 * tl.exp(-0.5 * y * y))
    else:
        return g


@triton.jit
def _gradient_tile(
    grad, out, sample, grad_sample, grad_channel, grad_pixel, out_sample, out_channel, out_pixel,
    sample_ptr, row_stride, table, last_code, pattern, weight, bias, black_ptr, scale_ptr, mix_ptr,
    gamma,
    padding_ptr, tile, channel, channels, positions,
    height, width, left, top, out_width, out_pixels,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, CLIP: tl.constexpr, MIX: tl.constexpr,
    CURVE: tl.constexpr, PADDED: tl.constexpr, PAIRS: tl.constexpr, ELEMENT: tl.constexpr,
    LINEARISE: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    RECOMPUTE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """g of a tile, ``[BLOCK_CHANNELS, BLOCK_PIXELS]`` in float32; 0 where no output is."""
    pixel = tile * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    mask = (channel < channels)[:, None] & (pixel < out_pixels)[None, :]
    at = channel.to(tl.int64)[:, None] * grad_channel + pixel.to(tl.int64)[None, :] * grad_pixel
    g = tl.load(grad + sample * grad_sample + at, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "none":
        return g
    if RECOMPUTE:
        y = convolve_tile(
            sample_ptr, row_stride, table, last_code, pattern, weight, black_ptr, scale_ptr,
            mix_ptr,
            gamma,
            padding_ptr, tile, channel, channels, positions,
    height, width, left, top, out_width, out_pixels,
            KERNEL, STRIDE, CLIP, MIX, CURVE, PADDED, PAIRS, ELEMENT, LINEARISE, OPERAND, PRECISION,
            BLOCK_CHANNELS, BLOCK_PIXELS, 16,
        )  # fmt: skip
        if BIAS:
            y += tl.load(bias + channel, mask=channel < channels, other=0.0)[:, None]
    else:
        at = channel.to(tl.int64)[:, None] * out_channel + pixel.to(tl.int64)[None, :] * out_pixel
        y = tl.load(out + sample * out_sample + at, mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, _times_derivative(g, y, ACTIVATION), 0.0)


@triton.jit
def raw_conv_weight_kernel(
    mosaic, weight, bias, black, scale, mix, gamma_ptr, padding_value, patterns, linearise, grad,
    out,
    weight_sums, bias_sums,
    sample_stride, row_stride, table_step, last_code, grad_sample, grad_channel, grad_pixel,
    out_sample, out_channel, out_pixel,
    channels, positions, height, width, left, top, out_width, out_pixels, tiles, all_tiles, splits,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, CLIP: tl.constexpr, MIX: tl.constexpr,
    CURVE: tl.constexpr, PADDED: tl.constexpr, PAIRS: tl.constexpr, ELEMENT: tl.constexpr,
    LINEARISE: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    RECOMPUTE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """Grid: (splits, blocks of positions), blocks of channels.

    The blocks of positions are neighbours in time, so that the gradient which all of them read
    comes from the cache.
    """
    blocks = tl.cdiv(positions, BLOCK_POSITIONS)
    split = tl.program_id(0) // blocks
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    begin = tl.program_id(0) % blocks * BLOCK_POSITIONS
    AREA: tl.constexpr = KERNEL * KERNEL
    gamma = 1.0
    if CURVE == "gamma":
        gamma = tl.load(gamma_ptr)
    sum0 = tl.zeros((BLOCK_CHANNELS, BLOCK_POSITIONS), tl.float32)
    sum1 = tl.zeros((BLOCK_CHANNELS, BLOCK_POSITIONS), tl.float32)
    sum2 = tl.zeros((BLOCK_CHANNELS, BLOCK_POSITIONS), tl.float32)
    sum3 = tl.zeros((BLOCK_CHANNELS, BLOCK_POSITIONS), tl.float32)
    of_bias = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    for index in range(split, all_tiles, splits):
        sample = (index // tiles).to(tl.int64)
        tile = (index % tiles).to(tl.int32)
        pattern = tl.load(patterns + sample).to(tl.int32) & 3
        sample_ptr = mosaic + sample * sample_stride
        table = linearise + sample * table_step
        g = _gradient_tile(
            grad, out, sample, grad_sample, grad_channel, grad_pixel,
            out_sample, out_channel, out_pixel, sample_ptr, row_stride, table, last_code, pattern,
            weight, bias,
            black + 4 * sample, scale + 4 * sample, mix + 16 * sample, gamma, padding_value,
            tile, channel, channels, positions, height, width, left, top, out_width, out_pixels,
            KERNEL, STRIDE, CLIP, MIX, CURVE, PADDED, PAIRS, ELEMENT, LINEARISE, OPERAND,
            PRECISION, BIAS,
            ACTIVATION, RECOMPUTE, BLOCK_CHANNELS, BLOCK_PIXELS,
        )  # fmt: skip
        of_bias += tl.sum(g, axis=1)
        row, column, there = place_tile(
            tile, begin, out_width, out_pixels, left, top,
            KERNEL, STRIDE, BLOCK_POSITIONS, BLOCK_PIXELS,
        )  # fmt: skip
        x0, x1, x2, x3 = planes_of_tile(
            sample_ptr, row_stride, table, last_code, pattern, row, column, there, height, width,
            black + 4 * sample, scale + 4 * sample, mix + 16 * sample, gamma, padding_value,
            PAIRS, ELEMENT, LINEARISE, CLIP, MIX, CURVE, PADDED,
        )  # fmt: skip
        g = g.to(OPERAND)
        sum0 = tl.dot(g, tl.trans(x0.to(OPERAND)), sum0, input_precision=PRECISION)
        sum1 = tl.dot(g, tl.trans(x1.to(OPERAND)), sum1, input_precision=PRECISION)
        sum2 = tl.dot(g, tl.trans(x2.to(OPERAND)), sum2, input_precision=PRECISION)
        sum3 = tl.dot(g, tl.trans(x3.to(OPERAND)), sum3, input_precision=PRECISION)
    position = begin + tl.arange(0, BLOCK_POSITIONS)
    mask = (channel < channels)[:, None] & (position < AREA)[None, :]
    at = weight_sums + split * (channels * 4 * AREA)
    at = at + channel[:, None] * (4 * AREA) + position[None, :]
    tl.store(at, sum0, mask=mask)
    tl.store(at + AREA, sum1, mask=mask)
    tl.store(at + 2 * AREA, sum2, mask=mask)
    tl.store(at + 3 * AREA, sum3, mask=mask)
    if begin == 0:
        tl.store(bias_sums + split * channels + channel, of_bias, mask=channel < channels)


@triton.jit
def _share(gradient, factor, own, MIX: tl.constexpr):
    """What a plane before the mix has of the gradient of one after it."""
    if MIX:
        return gradient * factor
    else:
        return tl.where(own, gradient, 0.0)


@triton.jit
def _sum_of_gain(
    gradient, normalised, value, black_ptr, unit_ptr, PLANE: tl.constexpr, CLIP: tl.constexpr
):  # fmt: skip
    """What a plane's gradient after its clamp adds to the gradient of its gain, per pixel."""
    share = (value - tl.load(black_ptr + PLANE)) * tl.load(unit_ptr + PLANE)
    return tl.sum(let_through(gradient, normalised, CLIP) * share, axis=0)


@triton.jit
def raw_conv_colour_kernel(
    mosaic, weight, bias, black, scale, unit, mix, gamma_ptr, padding_value, patterns, linearise,
    grad, out,
    colour_sums,
    sample_stride, row_stride, table_step, last_code, grad_sample, grad_channel, grad_pixel,
    out_sample, out_channel, out_pixel,
    channels, positions, height, width, left, top, out_width, out_pixels, tiles, splits,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, CLIP: tl.constexpr, MIX: tl.constexpr,
    CURVE: tl.constexpr, PADDED: tl.constexpr, PAIRS: tl.constexpr, ELEMENT: tl.constexpr,
    LINEARISE: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    RECOMPUTE: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    """Grid: (split of a sample's tiles, plane after the mix), blocks of channels, samples.

    The four planes are programs of their own, neighbours in time, so that the gradient which all of
    them read comes from the cache: one program with all 21 sums would spill. Where there is no mix,
    its sums mean nothing.
    """
    split = tl.program_id(0) // 4
    k = tl.program_id(0) % 4
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    sample = tl.program_id(2).to(tl.int64)
    AREA: tl.constexpr = KERNEL * KERNEL
    gamma = 1.0
    if CURVE == "gamma":
        gamma = tl.load(gamma_ptr)
    pattern = tl.load(patterns + sample).to(tl.int32) & 3
    sample_ptr = mosaic + sample * sample_stride
    table = linearise + sample * table_step
    black_ptr, scale_ptr, unit_ptr = black + 4 * sample, scale + 4 * sample, unit + 4 * sample
    mix_r, mix_gr, mix_gb, mix_b = 0.0, 0.0, 0.0, 0.0
    if MIX:
        mix_row = mix + 16 * sample + 4 * k
        mix_r, mix_gr = tl.load(mix_row), tl.load(mix_row + 1)
        mix_gb, mix_b = tl.load(mix_row + 2), tl.load(mix_row + 3)
    # Sums per pixel of the tile, added up once at the end.
    of_gamma = tl.zeros((BLOCK_PIXELS,), tl.float32)
    of_mix_r, of_mix_gr, of_mix_gb, of_mix_b = of_gamma, of_gamma, of_gamma, of_gamma
    of_gain_r, of_gain_gr, of_gain_gb, of_gain_b = of_gamma, of_gamma, of_gamma, of_gamma
    for index in range(split, tiles, splits):
        g = _gradient_tile(
            grad, out, sample, grad_sample, grad_channel, grad_pixel,
            out_sample, out_channel, out_pixel, sample_ptr, row_stride, table, last_code, pattern,
            weight, bias,
            black_ptr, scale_ptr, mix + 16 * sample, gamma, padding_value,
            index, channel, channels, positions, height, width, left, top, out_width, out_pixels,
            KERNEL, STRIDE, CLIP, MIX, CURVE, PADDED, PAIRS, ELEMENT, LINEARISE, OPERAND,
            PRECISION, BIAS,
            ACTIVATION, RECOMPUTE, BLOCK_CHANNELS, BLOCK_PIXELS,
        ).to(OPERAND)  # fmt: skip
        for begin in range(0, positions, BLOCK_POSITIONS):
            row, column, there = place_tile(
                index, begin, out_width, out_pixels, left, top,
                KERNEL, STRIDE, BLOCK_POSITIONS, BLOCK_PIXELS,
            )  # fmt: skip
            inside = there & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            r, gr, gb, b = load_planes(
                sample_ptr, row_stride, table, last_code, pattern, row, column, inside,
                PAIRS, ELEMENT, LINEARISE,
            )  # fmt: skip
            nr, ngr, ngb, nb = normalised_planes(r, gr, gb, b, black_ptr, scale_ptr)
            ur, ugr, ugb, ub = (
                clamped(nr, CLIP), clamped(ngr, CLIP), clamped(ngb, CLIP), clamped(nb, CLIP),
            )  # fmt: skip
            if MIX:
                h = mix_r * ur + mix_gr * ugr + mix_gb * ugb + mix_b * ub
            else:
                h = tl.where(k < 2, tl.where(k == 0, ur, ugr), tl.where(k == 2, ugb, ub))
            v = clamped(h, CLIP)

            position = begin + tl.arange(0, BLOCK_POSITIONS)
            w = tl.load(
                weight + (channel * 4 + k)[None, :] * AREA + position[:, None],
                mask=(channel < channels)[None, :] & (position < AREA)[:, None], other=0.0,
            )  # fmt: skip
            # The gradient of what the convolution read; that of the padding ends here.
            gx = tl.where(inside, tl.dot(w.to(OPERAND), g, input_precision=PRECISION), 0.0)
            if CURVE == "gamma":
                of_gamma += tl.sum(gx * gamma_derivative(v, gamma), axis=0)
            gh = let_through(gx * curve_derivative(v, gamma, CURVE), h, CLIP)
            of_mix_r += tl.sum(gh * ur, axis=0)
            of_mix_gr += tl.sum(gh * ugr, axis=0)
            of_mix_gb += tl.sum(gh * ugb, axis=0)
            of_mix_b += tl.sum(gh * ub, axis=0)
            of_gain_r += _sum_of_gain(
                _share(gh, mix_r, k == 0, MIX), nr, r, black_ptr, unit_ptr, 0, CLIP
            )
            of_gain_gr += _sum_of_gain(
                _share(gh, mix_gr, k == 1, MIX), ngr, gr, black_ptr, unit_ptr, 1, CLIP
            )
            of_gain_gb += _sum_of_gain(
                _share(gh, mix_gb, k == 2, MIX), ngb, gb, black_ptr, unit_ptr, 2, CLIP
            )
            of_gain_b += _sum_of_gain(
                _share(gh, mix_b, k == 3, MIX), nb, b, black_ptr, unit_ptr, 3, CLIP
            )
    # [sample][block of channels][split][plane][gain 4, mix row 4, gamma]
    place = (sample * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + split * 4 + k
    sums = colour_sums + place * 9
    tl.store(sums, tl.sum(of_gain_r))
    tl.store(sums + 1, tl.sum(of_gain_gr))
    tl.store(sums + 2, tl.sum(of_gain_gb))
    tl.store(sums + 3, tl.sum(of_gain_b))
    tl.store(sums + 4, tl.sum(of_mix_r))
    tl.store(sums + 5, tl.sum(of_mix_gr))
    tl.store(sums + 6, tl.sum(of_mix_gb))
    tl.store(sums + 7, tl.sum(of_mix_b))
    tl.store(sums + 8, tl.sum(of_gamma))


def _compatible(image: Tensor) -> Tensor:
    """With rows that follow one another, so that an output pixel has one stride."""
    height, width = image.shape[2:]
    if height == 1 or width == 1 or image.stride(2) == image.stride(3) * width:
        return image
    return image.contiguous()


def pixel_stride(image: Tensor) -> int:
    """Elements from one output pixel to the next, rows following one another."""
    return image.stride(2) if image.shape[3] == 1 else image.stride(3)


def weight_tile(float32: bool, recompute: bool) -> tuple[int, int]:
    """Pixels and warps of the weight's kernel: as many as fit the registers without spills."""
    if not float32:
        return 32, 4
    return (16, 4) if recompute else (32, 8)


def colour_tile(float32: bool) -> tuple[int, int]:
    """Pixels and warps of the colour kernel, likewise."""
    return (32, 8) if float32 else (32, 4)


def launch_weight(call: dict[str, Any], grad: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients of weight ``[C, 4, K, K]`` and bias ``[C]``, float32.

    ``call``: as for :func:`~isp_distill.kernels.raw_conv.forward.launch_forward`.
    """
    batch, channels = grad.shape[:2]
    kernel = call["KERNEL"]
    pixels, warps = weight_tile(call["OPERAND"] == tl.float32, out is None)
    tiles = triton.cdiv(call["out_pixels"], pixels)
    splits = max(1, min(SPLITS, batch * tiles))
    weight_sums = grad.new_zeros((splits, channels, 4, kernel, kernel), dtype=torch.float32)
    bias_sums = grad.new_zeros((splits, channels), dtype=torch.float32)
    grid = (
        splits * triton.cdiv(kernel * kernel, call["BLOCK_POSITIONS"]),
        triton.cdiv(channels, call["BLOCK_CHANNELS"]),
    )
    if grad.numel():
        raw_conv_weight_kernel[grid](
            **call, **_gradient_arguments(grad, out), weight_sums=weight_sums,
            bias_sums=bias_sums, tiles=tiles, all_tiles=batch * tiles, splits=splits,
            BLOCK_PIXELS=pixels, num_warps=warps, num_stages=1,
        )  # fmt: skip
    return weight_sums.sum(0), bias_sums.sum(0)


def launch_colour(
    call: dict[str, Any], unit: Tensor, grad: Tensor, out: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of gain ``[N, 4]``, mix ``[N, 4, 4]`` and gamma ``[]``, float32.

    ``unit``: ``1 / (white - black)``, ``[N, 4]``.
    """
    batch, channels = grad.shape[:2]
    pixels, warps = colour_tile(call["OPERAND"] == tl.float32)
    tiles = triton.cdiv(call["out_pixels"], pixels)
    splits = max(1, min(triton.cdiv(SPLITS, max(batch, 1)), tiles))
    blocks = triton.cdiv(channels, call["BLOCK_CHANNELS"])
    sums = grad.new_zeros((batch, blocks, splits, 4, 9), dtype=torch.float32)
    if grad.numel():
        raw_conv_colour_kernel[splits * 4, blocks, batch](
            **call, **_gradient_arguments(grad, out), unit=unit, colour_sums=sums, tiles=tiles,
            splits=splits, BLOCK_PIXELS=pixels, num_warps=warps, num_stages=1,
        )  # fmt: skip
    of_plane = sums.sum((1, 2))
    return of_plane[..., :4].sum(1), of_plane[..., 4:8], of_plane[..., 8].sum()


def _gradient_arguments(grad: Tensor, out: Tensor | None) -> dict[str, Any]:
    """The output's gradient and, where it was kept, the output."""
    grad = _compatible(grad)
    kept = grad if out is None else out
    return {
        "grad": grad,
        "grad_sample": grad.stride(0),
        "grad_channel": grad.stride(1),
        "grad_pixel": pixel_stride(grad),
        "out": kept,
        "out_sample": kept.stride(0),
        "out_channel": kept.stride(1),
        "out_pixel": pixel_stride(kept),
        "RECOMPUTE": out is None,
    }
