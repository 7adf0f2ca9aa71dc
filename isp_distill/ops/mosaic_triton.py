"""How the Triton kernels read a mosaic (``kernels/sensor.py``): what a call tells them about it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isp_distill.backends.kernel_arguments import plain

ELEMENTS = {
    torch.uint8: "uint8",
    torch.uint16: "uint16",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.float16: "float16",
    torch.float32: "float32",
    torch.float64: "float64",
}
_TWICE = {1: torch.int16, 2: torch.int32, 4: torch.int64}


def in_pairs(mosaic: Tensor) -> tuple[Tensor, bool]:
    """The mosaic as integers that each hold two neighbours of a row, where its layout allows."""
    if mosaic.stride(2) != 1:
        mosaic = mosaic.contiguous()
    size = mosaic.element_size()
    # A number is read at a multiple of its own size; crops by whole periods keep that.
    even = all(s % 2 == 0 for s in (mosaic.stride(0), mosaic.stride(1), mosaic.storage_offset()))
    if size not in _TWICE or not even or mosaic.data_ptr() % (2 * size):
        return mosaic, False
    return mosaic.view(_TWICE[size]), True


def read(
    mosaic: Tensor, packing: str | None, linearise: Tensor | None, absent: Tensor
) -> dict[str, Any]:
    """How the kernels read a mosaic, by the names of their arguments.

    Args:
        mosaic: ``[N, H, W]``, or ``[N, H, bytes]`` with ``packing``.
        packing: how its codes are packed, or None.
        linearise: the linear values of codes, ``[N, L]`` or ``[1, L]``, or None.
        absent: what stands for a pointer that nothing is read through.
    """
    element, pairs = packing or ELEMENTS[mosaic.dtype], False
    if packing is None:
        mosaic, pairs = in_pairs(mosaic)
    elif mosaic.stride(2) != 1:
        mosaic = mosaic.contiguous()
    table = plain(linearise)
    return {
        "mosaic": mosaic,
        "sample_stride": mosaic.stride(0),
        "row_stride": mosaic.stride(1),
        "linearise": absent if table is None else table,
        "table_step": 0 if table is None or table.shape[0] == 1 else table.shape[1],
        "last_code": 0 if table is None else table.shape[1] - 1,
        "PAIRS": pairs,
        "ELEMENT": element,
        "LINEARISE": table is not None,
    }
