"""Philox4x32-10 and the standard normal numbers made of it: the stream of ``ops/philox.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from .elementary import log2, sine_cosine


@triton.jit
def philox(period, sample, key_low, key_high):
    """The four words of each period's counter, uint32, from uint32 and two halves of the seed."""
    STREAM_NOISE: tl.constexpr = 1
    c0 = period
    c1 = tl.zeros_like(period) + sample
    c2 = tl.zeros_like(period) + STREAM_NOISE
    c3 = tl.zeros_like(period)
    k0, k1 = key_low, key_high
    first = tl.full(period.shape, 0xD2511F53, tl.uint32)
    second = tl.full(period.shape, 0xCD9E8D57, tl.uint32)
    weyl0 = tl.full((), 0x9E3779B9, tl.uint32)
    weyl1 = tl.full((), 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        h0, l0 = tl.umulhi(c0, first), c0 * first
        h1, l1 = tl.umulhi(c2, second), c2 * second
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0 += weyl0
        k1 += weyl1
    return c0, c1, c2, c3


@triton.jit
def normal_pair(word_a, word_b):
    """Two standard normal numbers of two words (Box and Muller, 1958)."""
    u = 1.0 - (word_a >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08
    radius = tl.sqrt_rn(log2(u) * -1.386294361)
    sine, cosine = sine_cosine((word_b >> 8).to(tl.int32))
    return radius * cosine, radius * sine
