"""Elementary functions of float32 with the same bits on every backend.

A library's ``log`` or ``cos`` is right to within a unit or two in the last place, and which one
differs from library to library: enough to round a sensor value the other way. IEEE 754 fixes the
results of +, -, *, / and square root alone, so these functions are made of nothing else, in a fixed
order and without fused multiply-adds. ``csrc/cpu/elementary.h`` and ``kernels/elementary.py`` hold
the same operations; what is equal here is equal there.

The polynomials are minimax fits; each function states its error against the exact value.
"""

from __future__ import annotations

import torch
from torch import Tensor

# In powers of u = sqrt(x): y / u, where 3y^2 - 2y^3 = x, for x in [0, 1/2].
_INVERSE_SMOOTHSTEP = (
    *(0.577361643, 0.110519752, 0.0640145764, -0.0585274249, 0.46354422),
    *(-1.23047125, 2.08728766, -1.8798368, 0.754534125),
)
_EXP2 = (1.0, 0.6931472254, 0.2402210737, 0.05550297325, 0.009676036365, 0.001340999651)
_LOG2 = (
    *(1.442694772, -0.7213571495, 0.4809394387, -0.3600871879),
    *(0.2867076072, -0.2500694984, 0.2368893871, -0.1457418928),
)
# In powers of r^2, r in quarters of a turn: sin(r pi/2) / r and cos(r pi/2).
_SINE = (1.57079625, -0.645962954, 0.0796759054, -0.00459228922)
_COSINE = (1.0, -1.23370051, 0.253669202, -0.0208600722, 0.000903631677)

_SQRT_HALF_BITS = 0x3F3504F3
# Added to a number below 2^22, it leaves the nearest integer in the lowest bits.
_ROUNDING = 1.5 * 2**23


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Horner's scheme, a multiplication and an addition a step; lowest power first."""
    p = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        p = p * x + coefficient
    return p


def square_root(x: Tensor) -> Tensor:
    """The correctly rounded square root, which torch's own is not everywhere (MKL's vector one).

    The root of a 24-bit number lies too far from the middle between two floats for float64's
    rounding to matter.
    """
    return x.double().sqrt().to(x.dtype)


def inverse_smoothstep(x: Tensor) -> Tensor:
    """The y in [0, 1] with ``3y^2 - 2y^3 = x``, that is ``0.5 - sin(asin(1 - 2x) / 3)``.

    Both ends of the curve rise like a square root, and are smooth in ``sqrt(x)``; the upper half
    is the lower one turned around.

    Args:
        x: float32 in [0, 1].

    Returns:
        float32, absolute error below 2e-7.
    """
    u = square_root(torch.where(x > 0.5, 1 - x, x))
    y = u * _polynomial(u, _INVERSE_SMOOTHSTEP)
    return torch.where(x > 0.5, 1 - y, y)


def log2(x: Tensor) -> Tensor:
    """Logarithm of a normal x > 0: absolute error below 1.2e-7 beside the result's own rounding.

    Never positive for x <= 1, so that the square root of its negative exists.
    """
    bits = x.view(torch.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    t = (bits - (exponent << 23)).view(torch.float32) - 1
    return _polynomial(t, _LOG2) * t + exponent.float()


def exp2(x: Tensor) -> Tensor:
    """2 to the power of x, for x in [-126, 127]: relative error below 3.2e-7."""
    shifted = x + _ROUNDING
    t = x - (shifted - _ROUNDING)
    power = shifted.view(torch.int32) << 23
    return (_polynomial(t, _EXP2).view(torch.int32) + power).view(torch.float32)


def sine_cosine(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of ``angle`` 2^-24ths of a turn, integers in [0, 2^24).

    Returns:
        Two float32 tensors, absolute errors below 1.2e-7.
    """
    quarter = (angle + (1 << 21)) >> 22
    r = (angle - (quarter << 22)).float() * 2.0**-22
    square = r * r
    sine, cosine = r * _polynomial(square, _SINE), _polynomial(square, _COSINE)
    odd = (quarter & 1) != 0
    one, other = torch.where(odd, cosine, sine), torch.where(odd, sine, cosine)
    return (
        torch.where((quarter & 2) != 0, -one, one),
        torch.where(((quarter + 1) & 2) != 0, -other, other),
    )
