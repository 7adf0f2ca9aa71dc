"""Counter-based random numbers (Philox4x32-10), the same on every backend for the same seed.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A number is a
function of the seed and of where it is used, so no state is carried, any pixel can be drawn alone,
and a run that is resumed draws what it would have drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isp_distill.ops import elementary

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF

#: The third counter word tells what the numbers are for, so that no two uses share any.
STREAM_CAMERA = 0
STREAM_NOISE = 1


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, ...]:
    """Four 32-bit words for each counter.

    Args:
        counter: four int64 tensors of broadcastable shapes, each holding values below 2**32.
        seed: the 64-bit key.

    Returns:
        Four int64 tensors with values in ``[0, 2**32)``.
    """
    c0, c1, c2, c3 = counter  # the rounds mix, and so broadcast, them all
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, which leaves exactly the 64 bits of the unsigned one.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        h0, l0 = (p0 >> 32) & _WORD, p0 & _WORD
        h1, l1 = (p1 >> 32) & _WORD, p1 & _WORD
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def uniform(word: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map 32-bit words to ``[0, 1)``: the upper 24 bits, exact in float32."""
    return (word >> 8).to(dtype) * 2.0**-24


def normal_pair(
    word_a: Tensor, word_b: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Two independent standard normal numbers from two words (Box and Muller, 1958).

    In float32 every operation is one whose result IEEE 754 fixes (see ``elementary.py``), so that
    every backend draws the same bits: absolute error below 2e-6.
    """
    if dtype == torch.float32:
        # 2 ln(u) is 2 ln(2) log2(u), and u > 0.
        radius = elementary.square_root(elementary.log2(1.0 - uniform(word_a)) * -1.386294361)
        sine, cosine = elementary.sine_cosine(word_b >> 8)
        return radius * cosine, radius * sine
    radius = torch.sqrt(-2.0 * torch.log(1.0 - uniform(word_a, dtype)))
    angle = (2.0 * math.pi) * uniform(word_b, dtype)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def camera_words(batch: int, seed: int, device: torch.device) -> Tensor:
    """Twelve words a sample, for the random camera: int64 ``[batch, 12]``."""
    sample = torch.arange(batch, device=device)[:, None]
    block = torch.arange(3, device=device)[None, :]
    zero = torch.zeros((), dtype=torch.int64, device=device)
    words = philox((block, sample, zero + STREAM_CAMERA, zero), seed)
    return torch.stack(words, dim=-1).reshape(batch, 12)


def sensor_noise(batch: int, height: int, width: int, seed: int, device: torch.device) -> Tensor:
    """One standard normal number a sensor site: float32 ``[batch, height, width]``.

    One counter serves a 2x2 period, and its four words that period's four sites in reading order,
    so that a kernel draws once for each period it touches.
    """
    rows, columns = height // 2, width // 2
    period = torch.arange(rows * columns, device=device)[None, :]
    sample = torch.arange(batch, device=device)[:, None]
    zero = torch.zeros((), dtype=torch.int64, device=device)
    words = philox((period, sample, zero + STREAM_NOISE, zero), seed)
    sites = (*normal_pair(words[0], words[1]), *normal_pair(words[2], words[3]))
    noise = torch.stack(sites, dim=-1).reshape(batch, rows, columns, 2, 2)
    return noise.permute(0, 1, 3, 2, 4).reshape(batch, height, width)
