"""The specification of ``linearise``: companded codes to linear values, to be checked by eye.

A sensor of 20 or 24 bits sends codes of 10 to 16: a curve of a few straight pieces squeezes the
bright end together. ``linearise`` is the way back, taken before black is subtracted.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linearised(mosaic: Tensor, linearise: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The linear values of a mosaic's codes; a mosaic without ``linearise`` comes back as it is.

    Args:
        mosaic: ``[N, H, W]``, codes; of a floating-point type, values between them too.
        linearise: for all samples (M = 1) or each (M = N) a table ``[M, L]``, the values of the
            codes from 0 on, or knots ``[M, K, 2]``. Codes beyond either end have the end's value.
        dtype: of the result, float32 or float64. What lies between two codes or knots is computed
            in float64 and rounded once.

    Returns:
        ``[N, H, W]``; NaN stays NaN.
    """
    if linearise is None:
        return mosaic
    if linearise.dim() == 3:
        return interpolated(linearise, mosaic.flatten(1).double()).view(mosaic.shape).to(dtype)
    last = linearise.shape[1] - 1
    if not mosaic.is_floating_point():
        codes = mosaic.to(torch.int64).clamp(0, last)
        return _entries(linearise, codes).to(dtype)
    held = mosaic.double().clamp(0, last)
    below = held.nan_to_num().floor().clamp(max=last - 1).to(torch.int64)
    low, high = _entries(linearise, below).double(), _entries(linearise, below + 1).double()
    return torch.lerp(low, high, held - below).to(dtype)


def interpolated(knots: Tensor, codes: Tensor) -> Tensor:
    """The straight pieces between knots ``[M, K, 2]`` (code, value), at codes ``[M or N, n]``.

    Float64. Below the first knot and above the last the value is theirs.
    """
    code, value = knots.double().unbind(2)
    result = value[:, :1]
    for k in range(knots.shape[1] - 1):
        low, high = value[:, k : k + 1], value[:, k + 1 : k + 2]
        width = code[:, k + 1 : k + 2] - code[:, k : k + 1]
        share = ((codes - code[:, k : k + 1]) / width).clamp(max=1)
        # The other way round NaN would keep the first knot's value.
        result = torch.where(codes < code[:, k : k + 1], result, torch.lerp(low, high, share))
    return result


def table_of(knots: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Knots ``[M, K, 2]`` as a table of the codes below ``length``: ``[M, length]``."""
    codes = torch.arange(length, dtype=torch.float64, device=knots.device)
    return interpolated(knots, codes[None]).to(dtype)


def _entries(table: Tensor, codes: Tensor) -> Tensor:
    """Each sample's entries of its table ``[M, L]``, at codes ``[N, H, W]``."""
    if table.shape[0] == 1:
        return table[0][codes]
    return table.gather(1, codes.flatten(1)).view(codes.shape)
