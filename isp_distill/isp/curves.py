"""``ISP.linearise`` in its one form: a table of linear values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isp_distill.raw.companding import MOST_CODES, curve_of, tables_of


def table_of_curves(linearise: Sequence[Any] | Tensor) -> Tensor:
    """Curves of companding sensors as a table.

    Args:
        linearise: knots ``[K, 2]`` or ``[N, K, 2]``, or a table ``[L]`` or ``[N, L]``. What is a
            table of tensors already is kept as it is, on its device.

    Returns:
        Float32 ``[1, L]`` or ``[N, L]``, 3 values or more.

    Raises:
        TypeError, ValueError: as :func:`isp_distill.raw.companding.curve_of`.
    """
    if isinstance(linearise, Tensor):
        if linearise.dim() == 2 and linearise.shape[1] > 2 and linearise.dtype == torch.float32:
            return linearise
        numbers: Any = linearise.detach().cpu().numpy()
    else:
        numbers = linearise
    try:
        given = np.asarray(numbers, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "linearise must be knots [[code, value], ...] or a table of values, for all samples or "
            "each"
        ) from error
    of_each = given.ndim == 3 or (given.ndim == 2 and given.shape[1] != 2)
    curves = [curve_of(one) for one in (given if of_each else given[None])]
    tables = tables_of(curves, MOST_CODES)
    if tables is None:
        raise ValueError("linearise holds no curve: give None where codes are linear")
    return torch.from_numpy(tables)


def batched_curves(table: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
    """The table on a device, if it is of one sample for all or of ``batch`` samples.

    Raises:
        ValueError: it is of another count.
    """
    if table is None:
        return None
    if table.shape[0] not in (1, batch):
        raise ValueError(
            f"linearise has shape {list(table.shape)}: expected curves of 1 or {batch} samples"
        )
    return table.to(device, non_blocking=True)
