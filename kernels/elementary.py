"""Elementary functions whose results are the same bits on every backend.

The operations of ``isp_distill/ops/elementary.py``, in the same order; see there for why, and for
the errors. A kernel that uses them is launched with ``enable_fp_fusion=False``: the compiler may
not fuse a multiplication and an addition.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def inverse_smoothstep(x):
    """The y in [0, 1] with 3y^2 - 2y^3 = x, for x in [0, 1]."""
    u = tl.sqrt_rn(tl.where(x > 0.5, 1.0 - x, x))
    p = u * 0.754534125 + -1.8798368
    p = p * u + 2.08728766
    p = p * u + -1.23047125
    p = p * u + 0.46354422
    p = p * u + -0.0585274249
    p = p * u + 0.0640145764
    p = p * u + 0.110519752
    p = p * u + 0.577361643
    y = u * p
    return tl.where(x > 0.5, 1.0 - y, y)


@triton.jit
def log2(x):
    """Of a normal x > 0."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    t = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    p = t * -0.1457418928 + 0.2368893871
    p = p * t + -0.2500694984
    p = p * t + 0.2867076072
    p = p * t + -0.3600871879
    p = p * t + 0.4809394387
    p = p * t + -0.7213571495
    p = p * t + 1.442694772
    return p * t + exponent.to(tl.float32)


@triton.jit
def exp2(x):
    """For x in [-126, 127]."""
    shifted = x + 12582912.0  # 1.5 * 2^23 leaves the nearest integer in the lowest bits
    t = x - (shifted - 12582912.0)
    p = t * 0.001340999651 + 0.009676036365
    p = p * t + 0.05550297325
    p = p * t + 0.2402210737
    p = p * t + 0.6931472254
    p = p * t + 1.0
    power = shifted.to(tl.int32, bitcast=True) << 23
    return (p.to(tl.int32, bitcast=True) + power).to(tl.float32, bitcast=True)


@triton.jit
def sine_cosine(angle):
    """Of ``angle`` 2^-24ths of a turn, int32 in [0, 2^24)."""
    quarter = (angle + 2097152) >> 22
    r = (angle - (quarter << 22)).to(tl.float32) * 2.384185791015625e-07
    square = r * r
    s = square * -0.00459228922 + 0.0796759054
    s = s * square + -0.645962954
    s = r * (s * square + 1.57079625)
    c = square * 0.000903631677 + -0.0208600722
    c = c * square + 0.253669202
    c = c * square + -1.23370051
    c = c * square + 1.0
    odd = (quarter & 1) != 0
    one = tl.where(odd, c, s)
    other = tl.where(odd, s, c)
    sine = tl.where((quarter & 2) != 0, -one, one)
    cosine = tl.where(((quarter + 1) & 2) != 0, -other, other)
    return sine, cosine
