"""``linearise`` as callers give it, checked and brought into the one form of the operators.

Knots become a table once a call, so that a kernel does one look-up for each value of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isp_distill.arguments import readable
from isp_distill.ops.reference_companding import table_of
from isp_distill.raw.cfa import on_device
from isp_distill.raw.packings import PACKINGS

#: Codes have up to 16 bits.
MOST_CODES = 1 << 16
#: A curve of more pieces is a table.
MOST_KNOTS = 256

#: Why no kernel serves a call with a floating-point mosaic.
BETWEEN_CODES = "it looks codes up, and a floating-point mosaic has values between them"


def checked_linearise(
    linearise: Sequence[Any] | Tensor | None,
    mosaic: Tensor,
    packing: str | None,
    dtype: torch.dtype,
) -> Tensor | None:
    """The table of each sample, ``[N, L]``, or of all, ``[1, L]``.

    For a floating-point mosaic knots stay knots, ``[N, K, 2]`` or ``[1, K, 2]``, since its values
    may lie between codes. Of numbers on the CPU a table of knots ends at the last one; elsewhere it
    is as long as the mosaic's type has codes, at most 65536. It is the same function.

    Args:
        linearise: as in :func:`isp_distill.raw_conv`.
        mosaic: ``[N, H, W]``, or ``[N, H, bytes]`` with ``packing``.
        packing: the mosaic's, or None.
        dtype: that is computed in.

    Raises:
        TypeError: for anything but numbers, or a tensor that asks for a gradient.
        ValueError: for a wrong shape, codes that do not increase or that 16 bits do not
            hold, values that decrease or are not finite. Those on an accelerator are not looked at.
    """
    if linearise is None:
        return None
    own = isinstance(linearise, Tensor) and linearise.dtype == dtype
    given = on_device(linearise, mosaic.device, dtype if own else torch.float64, "linearise")
    if given.requires_grad:
        raise TypeError("linearise asks for a gradient, but it gets none: detach() it")
    shape = list(given.shape)
    given = given if _is_of_each(given) else given[None]
    knots = given.dim() == 3
    least, most = (2, MOST_KNOTS) if knots else (2, MOST_CODES)
    if (
        given.dim() not in (2, 3)
        or (knots and given.shape[2] != 2)
        or given.shape[0] not in (1, mosaic.shape[0])
        or not least <= given.shape[1] <= most
    ):
        raise ValueError(
            f"linearise has shape {shape}: expected knots [K, 2] or [{mosaic.shape[0]}, K, 2], "
            f"(code, value), up to {MOST_KNOTS} of them, or a table [L] or [{mosaic.shape[0]}, L] "
            f"of up to {MOST_CODES} values, from code 0 on"
        )
    if readable(given):
        _check(given, knots)
    if mosaic.is_floating_point():
        return given
    if not knots:
        return given.to(dtype)
    return table_of(given, _length(given, mosaic, packing), dtype)


def _is_of_each(given: Tensor) -> bool:
    """Whether there is an axis of samples already: ``[N, K, 2]`` or ``[N, L]``."""
    return given.dim() == 3 or (given.dim() == 2 and given.shape[1] != 2)


def _check(given: Tensor, knots: bool) -> None:
    """Refuse what is no curve of a sensor; ``given`` as it is kept."""
    values = given[..., 1] if knots else given
    # Written so that NaN fails it too.
    if not bool((values.abs() < math.inf).all()):
        raise ValueError("linearise has values that are not finite")
    steps = values.diff(dim=1)
    if not bool((steps >= 0).all()):
        sample, place = (steps < 0).nonzero()[0].tolist()
        first, second = values[sample, place : place + 2].tolist()
        raise ValueError(
            f"linearise must not decrease, and entry {place + 1} is {second:g} after {first:g}"
        )
    if not knots:
        return
    codes = given[..., 0]
    if not bool(((codes >= 0) & (codes < MOST_CODES)).all()):
        raise ValueError(f"the codes of linearise must be from 0 to {MOST_CODES - 1}")
    if not bool((codes.diff(dim=1) > 0).all()):
        raise ValueError(f"the codes of linearise must increase, and are {codes.tolist()}")


def _length(knots: Tensor, mosaic: Tensor, packing: str | None) -> int:
    """How many codes a table of knots has."""
    if readable(knots):
        return max(2, math.ceil(float(knots[:, -1, 0].max())) + 1) if knots.numel() else 2
    if packing is not None:
        return 1 << PACKINGS[packing].bits
    return 256 if mosaic.dtype == torch.uint8 else MOST_CODES
