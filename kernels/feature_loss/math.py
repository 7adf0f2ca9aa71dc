"""The arithmetic of the feature loss on tiles ``[rows, channels]``.

A row's features are x, and x' = x - m with m its mean under layer norm, else 0. The normalised row
is u = a x', a being 1, 1 / |x| or 1 / sqrt(var + epsilon); v is the teacher's. With d = u - v, what
the elements pull with is k: d for mse, d within [-beta, beta] for smooth L1. The gradient of a row
is then p x'_s + q x'_t + r k + z: ``settle`` makes these four numbers from the sums over the row.
A tile holds x'; what is no channel, or in no row that counts, is 0 there.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Of isp_distill/ops/reference_feature_loss.py.
NORM_FLOOR = tl.constexpr(1e-6)
LAYER_EPSILON = tl.constexpr(1e-5)


@triton.jit
def describe_rows(
    n, a, b, there, mask, weight, factors, row_n, row_a, row_b, rows_per_weight
):  # fmt: skip
    """Of each row: its number, whether it counts, the weights of its loss and of its cosine."""
    row = n.to(tl.int64) * row_n + a.to(tl.int64) * row_a + b.to(tl.int64) * row_b
    inside = there
    if mask is not None:
        inside = there & (tl.load(mask + row, mask=there, other=0) != 0)
    scale = tl.full(row.shape, 1.0, tl.float32)
    if weight is not None:
        scale = tl.load(weight + row // rows_per_weight, mask=inside, other=0.0)
    of_loss = tl.load(factors).to(tl.float32)
    of_cosine = tl.load(factors + 1).to(tl.float32)
    return (
        row,
        inside,
        tl.where(inside, of_loss * scale, 0.0),
        tl.where(inside, of_cosine * scale, 0.0),
    )


@triton.jit
def tile(
    pointer, at, read, counted, mean, scale, index, channels, NORMALISE: tl.constexpr
):  # fmt: skip
    """Features in float32, by the teacher's statistics where that is asked for."""
    x = tl.load(pointer + at, mask=read, other=0.0).to(tl.float32)
    if NORMALISE == "teacher":
        exists = index < channels
        of_mean = tl.load(mean + index, mask=exists, other=0.0)
        of_scale = tl.load(scale + index, mask=exists, other=0.0)
        x = (x - of_mean[None, :]) * of_scale[None, :]
    return tl.where(counted, x, 0.0)


@triton.jit
def scale_of(square, channels, NORMALISE: tl.constexpr):
    """a of a row, from the sum of x'^2."""
    if NORMALISE == "l2":
        length = tl.sqrt(square)
        return 1.0 / tl.where(length < NORM_FLOOR, NORM_FLOOR, length)
    elif NORMALISE == "layer":
        return 1.0 / tl.sqrt(square / channels + LAYER_EPSILON)
    else:
        return tl.where(square == 0, 1.0, 1.0)


@triton.jit
def pull(d, beta, ELEMENTS: tl.constexpr):
    """k of an element; NaN stays NaN."""
    if ELEMENTS == "smooth_l1":
        return tl.where(d > beta, beta, tl.where(d < -beta, -beta, d))
    else:
        return d


@triton.jit
def value_of(d, k, ELEMENTS: tl.constexpr):
    """d^2, or smooth L1 times beta."""
    if ELEMENTS == "smooth_l1":
        return k * (d - 0.5 * k)
    else:
        return d * d


@triton.jit
def settle(
    ss, tt, st, value, pulled, along, a_s, a_t, out, channels, cosine_share, element_share, beta,
    COSINE: tl.constexpr, ELEMENTS: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    """A row's loss and cosine without weights, and p, q, r and z of its gradient times ``out``."""
    uu, vv, uv = a_s * a_s * ss, a_t * a_t * tt, a_s * a_t * st
    length, other = tl.sqrt(uu), tl.sqrt(vv)
    short = length <= NORM_FLOOR
    inverse = 1.0 / (
        tl.where(length < NORM_FLOOR, NORM_FLOOR, length)
        * tl.where(other < NORM_FLOOR, NORM_FLOOR, other)
    )
    cosine = uv * inverse
    loss, of_u, of_v, of_k = out * 0.0, out * 0.0, out * 0.0, out * 0.0
    if COSINE:
        loss += cosine_share * (1.0 - cosine)
        of_u = tl.where(short, 0.0, cosine_share * cosine / uu)
        of_v = tl.where(ss == 0, 0.0, -cosine_share * inverse)
    if ELEMENTS != "none":
        share = element_share / channels
        if ELEMENTS == "smooth_l1":
            share = share / beta
            of_k += share
        else:
            of_k += 2 * share
        loss += share * value
    towards, mean = out * 0.0, out * 0.0
    if NORMALISE == "l2":
        towards = of_u * uu + of_v * uv + of_k * a_s * along
        towards = tl.where(tl.sqrt(ss) <= NORM_FLOOR, 0.0, towards)
        out = tl.where(ss == 0, 0.0, out * a_s)
    elif NORMALISE == "layer":
        towards = (of_u * uu + of_v * uv + of_k * a_s * along) / channels
        mean = of_k * pulled / channels
        out = out * a_s
    return loss, cosine, out * a_s * (of_u - towards), out * a_t * of_v, out * of_k, -out * mean


@triton.jit
def gradient(
    s, t, a_s, a_t, p, q, r, z, beta,
    COSINE: tl.constexpr, ELEMENTS: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    """The derivative by x', for a row's numbers ``[rows, 1]``."""
    result = s * 0.0
    # Where the elements alone make it, 0 times an infinite feature must not enter.
    if COSINE or NORMALISE == "l2" or NORMALISE == "layer":
        result = p * s + q * t + z
    if ELEMENTS != "none":
        k = r * pull(a_s * s - a_t * t, beta, ELEMENTS)
        if COSINE or NORMALISE == "l2" or NORMALISE == "layer":
            result += k
        else:
            result = k
    return result
